"""The workflows of our exports, run by ComfyUI's own server: their images, beside ours of the same noise."""

import argparse
import copy
import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import torch
from PIL import Image, ImageChops

from rapm_cli.bases import find_base
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.export.export import export
from rapm_cli.export.sidecars import WORKFLOW
from rapm_cli.formats.lora import apply_lora, load_lora
from rapm_cli.formats.programs import folders
from rapm_cli.generate.generate import pipeline_noise
from rapm_cli.runs.images import to_image
from tests.bases.conftest import load
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import edit
from tests.clients.checkpoints import CPU, SIZE, write_base
from tests.clients.environments import PROGRAMS, Row, python_of, version_of
from tests.clients.loras import OUT
from tests.export.test_exports import write_lora

NAME, FILE, CHECKPOINTS = "comfyui", "sd15 workflow", "models/checkpoints"
# Of 255. ComfyUI cuts what rapm rounds, and the last two of its four timesteps are 1 of 1000 away, which shows most
# where a network predicts velocities.
LIMIT, VELOCITY_LIMIT = 1, 8
WAIT = 300  # seconds for the server, and for an image
CONTROLS = {  # by what is left out, the inputs of nodes that change
    "the LoRA": {("1", "ckpt_name"): "bare.safetensors", ("2", "strength_model"): 0.0},
    "the node": {("9", "sampling"): "eps"},
}


def workflow_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Run each export's workflow as it is, and without what it must not lack, and compare the images with ours.

    The base has latents of 8 by 8, so the workflow asks for 64 pixels of its own.
    """
    if options.comfyui is None or options.without_checkpoints:
        reason = f"--{NAME} names no checkout" if options.comfyui is None else "--without-checkpoints"
        yield Row(NAME, file=FILE, figure=reason)
        return
    cases = _write_cases(place / "workflows", options.comfyui)
    python = python_of(options.environments, NAME)
    try:
        with _serving(python, options.comfyui, place / "workflows") as address:
            version = _get(f"{address}/system_stats")["system"]["comfyui_version"]
            for name, (nodes, ours) in cases.items():
                far = _distance(_image(address, nodes), ours)
                without = {
                    what: _distance(_image(address, _changed(nodes, inputs)), ours)
                    for what, inputs in CONTROLS.items()
                    if inputs.keys() & {(number, key) for number in nodes for key in nodes[number]["inputs"]}
                }
                limit = VELOCITY_LIMIT if "the node" in without else LIMIT
                figure = f"{far} of 255 from ours" + "".join(f", {d} without {what}" for what, d in without.items())
                yield Row(NAME, version, f"{FILE}, {name}", figure, far <= limit < min(without.values()))
    except RuntimeError as error:  # a checkout can be in part
        yield Row(NAME, version_of(options.comfyui), FILE, str(error), False)


def _write_cases(place: Path, checkout: Path) -> dict[str, tuple[dict[str, Any], Image.Image]]:
    """Write exports and put their files where the card says; return each one's workflow, and our image of it."""
    folder, lora = write_base(place), place / "mine.safetensors"
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(checkout / "comfy" / "sd1_tokenizer" / name, folder / "tokenizer")
    write_lora(folder, lora, SIZE)
    (place / CHECKPOINTS).mkdir(parents=True)
    bare = write_checkpoint(folder, place / CHECKPOINTS / "bare.safetensors")
    cases = {}
    for name, is_fused, predicts in (
        ("LoRA", False, "epsilon"),
        ("merged", True, "epsilon"),
        ("merged v-prediction", True, "v_prediction"),
    ):
        edit(folder, "scheduler/scheduler_config.json", prediction_type=predicts)
        output = place / name.replace(" ", "-")
        made = export(lora, find_base(str(folder), OUT), output, reporter=OUT, fuse=is_fused, single_file=is_fused)
        for file in made.files:
            if where := folders(file.readers, is_lora=not is_fused).get("ComfyUI"):
                (place / where).mkdir(parents=True, exist_ok=True)
                file.path.rename(place / where / file.path.name)
        nodes = json.loads((output / WORKFLOW).read_text())
        if not is_fused:
            bare.with_name(nodes["1"]["inputs"]["ckpt_name"]).symlink_to(bare)
        cases[name] = nodes, _our_image(folder, lora, nodes)
    return cases


def _our_image(folder: Path, lora: Path, nodes: dict[str, Any]) -> Image.Image:
    """Return our image of a workflow's prompt, seed and steps."""
    loaded, file, settings = load(folder), load_lora(lora), nodes["6"]["inputs"]
    apply_lora(loaded.backbone, file, lora)
    noise = pipeline_noise([settings["seed"]], loaded.latent_shape, CPU, torch.float32)
    cond = loaded.encode([nodes["3"]["inputs"]["text"]])
    clean = sample_student(loaded.backbone.student, noise, cond, settings["steps"], file.sampler)[0]
    return to_image(loaded.decode(clean)[0])


def _changed(nodes: dict[str, Any], inputs: dict[tuple[str, str], Any]) -> dict[str, Any]:
    changed = copy.deepcopy(nodes)
    for (number, name), value in inputs.items():
        if number in changed:
            changed[number]["inputs"][name] = value
    return changed


def _distance(image: Image.Image, ours: Image.Image) -> int:
    return max(high for _, high in ImageChops.difference(image, ours).getextrema())


@contextmanager
def _serving(python: Path, checkout: Path, place: Path) -> Iterator[str]:
    """Start ComfyUI's server on the CPU with its files below `place`, and return its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (place / "page").mkdir()
    options = ["--cpu", "--port", port, "--base-directory", place, "--front-end-root", place / "page"]
    options += ["--database-url", f"sqlite:///{place}/comfyui.db", "--disable-all-custom-nodes", "--disable-api-nodes"]
    command = [python, "-W", "ignore", PROGRAMS / "comfyui_server.py", checkout, *options]
    with (place / "log.txt").open("w+") as log:
        server = subprocess.Popen([str(word) for word in command], stdout=log, stderr=subprocess.STDOUT)
        try:
            address, end = f"http://127.0.0.1:{port}", time.monotonic() + WAIT
            while not _answers(address):
                if server.poll() is not None or time.monotonic() > end:
                    raise RuntimeError((place / "log.txt").read_text().strip().splitlines()[-1][:200])
                time.sleep(0.5)
            yield address
        finally:
            server.terminate()
            server.wait()


def _answers(address: str) -> bool:
    try:
        return bool(_get(f"{address}/system_stats"))
    except OSError:
        return False


def _get(url: str, data: dict[str, Any] | None = None) -> dict[str, Any]:
    with urlopen(url, json.dumps(data).encode() if data else None) as answer:
        return dict(json.load(answer))


def _image(address: str, nodes: dict[str, Any]) -> Image.Image:
    """Let the server run a workflow, and return its image.

    Raises:
        RuntimeError: The server refuses the workflow, or it fails.
    """
    try:
        number = _get(f"{address}/prompt", {"prompt": nodes})["prompt_id"]
    except HTTPError as error:
        raise RuntimeError(error.read().decode()[:200]) from error
    end = time.monotonic() + WAIT
    while not (said := _get(f"{address}/history/{number}").get(number)):
        if time.monotonic() > end:
            raise RuntimeError(f"no image in {WAIT} s")
        time.sleep(0.2)
    if said["status"]["status_str"] != "success":
        raise RuntimeError(json.dumps(said["status"]["messages"][-1])[:200])
    (image,) = said["outputs"]["8"]["images"]
    with urlopen(f"{address}/view?{urlencode(image)}") as answer:
        return Image.open(BytesIO(answer.read())).convert("RGB")

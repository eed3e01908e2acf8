"""A full-size Stable Diffusion 1.5 of random weights: merged, and with its LoRA, in the programs that open one file."""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases import find_base
from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.export.export import export
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import write_sd15
from tests.clients.environments import Row, ask, python_of, version_of
from tests.clients.loras import OUT, our_output
from tests.export.test_exports import write_lora
from tests.formats.full_size import ENCODERS

CPU = torch.device("cpu")
LIMIT = 0.02  # of the update: what a file's output may be off, by rounding to 16 bits
SIZE = 0.02  # of the LoRA's random factors
KINDS = {"with the LoRA": "base and LoRA, kohya", "merged": "merged checkpoint"}


def checkpoint_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Compare the outputs of each program's UNet with ours; of stable-diffusion.cpp, its images with each other."""
    if options.without_checkpoints:
        yield Row("all", file="sd15 checkpoints", figure="--without-checkpoints")
        return
    yield Row("all", file="sdxl checkpoints", figure="6.9 GB each: python -m tests.formats.full_size tries diffusers")
    folder, files = _write_files(place / "full-size")
    inputs, ours = our_output(folder, place / "full-size" / "mine.safetensors")
    save_file(inputs, place / "inputs.safetensors")
    job = {"checkpoints": files, "inputs": str(place / "inputs.safetensors"), "output": str(place / "out.safetensors")}
    (place / "job.json").write_text(json.dumps(job))
    programs = {
        "diffusers newest": ("diffusers_checkpoint", folder),
        "comfyui": ("comfyui_checkpoint", options.comfyui),
        "sd-scripts": ("sd_scripts_checkpoint", options.sd_scripts),
    }
    for program, (script, checkout) in programs.items():
        if checkout is None:
            yield Row(program, file="sd15 checkpoints", figure=f"--{program} names no checkout")
            continue
        try:
            said = ask(python_of(options.environments, program), script, checkout, place / "job.json")
        except RuntimeError as error:  # a checkout can be in part
            yield Row(program, version_of(checkout), "sd15 checkpoints", str(error), False)
            continue
        outputs = load_file(place / "out.safetensors")
        for kind, what in KINDS.items():
            far, bare = (float((outputs[name] - ours).abs().max()) for name in (kind, "bare"))
            lost = said["losses"].get(kind, [])
            figure = f"{far:.1g} from ours, {bare:.2g} without" + (f"; {lost[0]}" if lost else "")
            name, version = program.split()[0], said["version"] or version_of(checkout)
            yield Row(name, version, f"sd15 {what}", figure, far < LIMIT * bare and not lost)
    yield _sd_cpp_row(options, place)


def _sd_cpp_row(options: argparse.Namespace, place: Path) -> Row:
    name, file = "stable-diffusion.cpp", "sd15 merged against LoRA, kohya"
    try:
        said = ask(python_of(options.environments, name), "sd_cpp", place / "job.json")
    except RuntimeError as error:  # its wheels do not run on every processor
        return Row(name, file=file, figure=str(error))
    without = min(said["without"].values())
    figure = f"images {said['far']} of 255 apart, {without} without"
    return Row(name, f"cyllama {said['version']}", file, figure, said["far"] <= 2 < without)


def _write_files(place: Path) -> tuple[Path, dict[str, tuple[str, str]]]:
    """Write a base with small latents, its LoRA and a merged file.

    Returns:
        Folder of the base; and by kind, the checkpoint and the LoRA that is loaded with it.
    """
    folder, lora = write_base(place), place / "mine.safetensors"
    base = find_base(str(folder), OUT)
    write_lora(folder, lora, SIZE)
    export(lora, base, place / "kohya.safetensors", reporter=OUT)
    export(lora, base, place / "merged.safetensors", reporter=OUT, fuse=True, single_file=True)
    bare = str(write_checkpoint(folder, place / "bare.safetensors"))
    files = {"bare": (bare, ""), "with the LoRA": (bare, str(place / "kohya.safetensors"))}
    return folder, files | {"merged": (str(place / "merged.safetensors"), "")}


def write_base(place: Path) -> Path:
    """Write a base of random weights, full-size but for its latents, and return its folder."""
    torch.manual_seed(0)
    folder = write_sd15(place / "base")
    architecture = ARCHITECTURES["sd15"]
    kind, config = ENCODERS["text_encoder"]
    small = type(architecture)(architecture.unet | {"sample_size": 8}, architecture.vae)
    parts = {"unet": small.network(CPU, torch.float16), "vae": small.autoencoder(CPU, torch.float16)}
    for name, part in parts.items():
        shutil.rmtree(folder / name)
        part.save_pretrained(folder / name)
    del parts, part
    config.save_pretrained(folder / "text_encoder")
    state = {
        f"text_model.{name.removeprefix('text_model.')}": v for name, v in kind(config).half().state_dict().items()
    }
    save_file(state, folder / "text_encoder" / "model.safetensors", {"format": "pt"})
    return folder

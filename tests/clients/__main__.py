"""Load our LoRAs in the programs that read them, and print one table.

`python -m tests.clients --comfyui DIR --sd-scripts DIR --webui DIR` takes checkouts by path. Whatever is not given is
skipped with the reason, as in CI. Environments are made once below `--environments`: about 12 GB and 20 minutes.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases import find_base
from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.cli.console import Output
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.student import TARGET_MODULES
from rapm_cli.export.export import export
from rapm_cli.formats import original_layout
from rapm_cli.formats.comfyui_keys import layers_found
from rapm_cli.formats.exports import EXPORTS
from rapm_cli.formats.kohya import LoraTarget
from rapm_cli.formats.lora import LoraFile, apply_lora, load_lora
from rapm_cli.formats.sampling_advice import infotext
from tests.bases.conftest import load
from tests.bases.small_models import write_sd15, write_sdxl
from tests.clients.environments import ENVIRONMENTS, ask, python_of
from tests.export.test_exports import write_lora
from tests.formats import lora_forms

OUT = Output(quiet=True)
SMALL = {"sdxl": (write_sdxl, "StableDiffusionXLPipeline"), "sd15": (write_sd15, "StableDiffusionPipeline")}
LIMIT = 1e-4  # of the difference between two outputs of a UNet, whose values are within ±10
META = torch.device("meta")
OTHERS = (lora_forms.diffusers_new, lora_forms.diffusers_old, lora_forms.peft_without_prefix)
Row = tuple[str, str, str, str]  # program, file, result, "ok", "WRONG" or "skipped"


def main() -> int:
    """Print the table; return 1 where a program reads a file in another way than rapm says."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, what in (("comfyui", "ComfyUI"), ("sd-scripts", "kohya's trainer"), ("webui", "A1111 or Forge")):
        parser.add_argument(f"--{name}", type=Path, help=f"checkout of {what}")
    parser.add_argument("--environments", type=Path, default=Path(tempfile.gettempdir()) / "rapm-clients")
    parser.add_argument("--without-diffusers", action="store_true", help="leave the releases of diffusers out")
    options = parser.parse_args()
    out, is_right = Output(), True
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for check in (diffusers_rows, table_rows, webui_rows):
            for row in check(options, Path(place)):
                rows.append(list(row))
                is_right = is_right and row[3] != "WRONG"
                out.say("  ".join(row))
    out.table("clients", ["program", "file", "result", ""], rows, text_columns=(0, 1, 2, 3))
    return 0 if is_right else 1


def diffusers_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Compare the output of each release with ours, with every form of a LoRA whose alpha is not its rank."""
    names = [name for name in ENVIRONMENTS if name.startswith("diffusers")]
    if options.without_diffusers:
        yield from ((name, "", "--without-diffusers", "skipped") for name in names)
        return
    for family, (write, pipeline) in SMALL.items():
        folder = write(place / f"small-{family}")
        lora = write_lora(folder, place / f"{family}.safetensors")
        made = export(lora, find_base(str(folder), OUT), place / f"{family}-lora", reporter=OUT)
        loras = {"without": "", "of a run": str(lora)} | {file.path.stem: str(file.path) for file in made.files}
        inputs, ours = _our_output(folder, lora)
        save_file(inputs, place / "inputs.safetensors")
        job = {"pipeline": pipeline, "unet": str(folder / "unet"), "loras": loras}
        job |= {"inputs": str(place / "inputs.safetensors"), "output": str(place / "outputs.safetensors")}
        (place / "job.json").write_text(json.dumps(job))
        for name in names:
            said = ask(python_of(options.environments, name), "diffusers_unet", place / "job.json")
            outputs = load_file(place / "outputs.safetensors")
            for file in list(loras)[1:]:
                if file in said["errors"]:
                    yield f"diffusers {said['version']}", file, said["errors"][file], "WRONG"
                    continue
                far = float((outputs[file] - ours).abs().max())
                bare = float((outputs["without"] - ours).abs().max())
                result = f"{far:.1g} from ours, {bare:.2g} without"
                yield f"diffusers {said['version']}", file, result, "ok" if far < LIMIT < bare else "WRONG"


def _our_output(folder: Path, lora: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Return inputs of a UNet, and our output of it with a LoRA."""
    loaded, generator = load(folder), torch.Generator().manual_seed(2)
    unet = loaded.backbone.unet.config
    inputs = {"z": torch.randn(1, *loaded.latent_shape, generator=generator)}
    inputs["tokens"] = torch.randn(1, 5, unet["cross_attention_dim"], generator=generator)
    if width := unet["projection_class_embeddings_input_dim"]:
        ids = 6 * unet["addition_time_embed_dim"]
        inputs |= {"text_embeds": torch.randn(1, width - ids, generator=generator), "time_ids": torch.ones(1, 6)}
    apply_lora(loaded.backbone, load_lora(lora), lora)
    cond = Conditioning(inputs["tokens"], inputs.get("text_embeds"), inputs.get("time_ids"))
    with torch.no_grad():
        return inputs, loaded.backbone.student(inputs["z"], 500, cond)


def table_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Compare the number of layers that ComfyUI and sd-scripts find in full-size models with our verdict."""
    wanted: dict[str, Callable[[str, Path, int], int]] = {
        "comfyui": lambda family, path, count: layers_found(list(load_file(path)))[0],
        "sd-scripts": lambda family, path, count: count if path.stem == "kohya" else 0,
    }
    for family in SMALL:
        shapes, loras, count = _full_size(family, place / family)
        for program, expected in wanted.items():
            checkout = getattr(options, program.replace("-", "_"))
            if checkout is None:
                yield program, family, f"--{program} names no checkout", "skipped"
                continue
            job = {"family": family, "shapes": shapes, "loras": {name: str(path) for name, path in loras.items()}}
            (place / "job.json").write_text(json.dumps(job))
            script = {"comfyui": "comfyui_keys", "sd-scripts": "sd_scripts"}[program]
            said = ask(python_of(options.environments, program), script, checkout, place / "job.json")
            for name, path in loras.items():
                found = said["found"][name]
                is_right = found == expected(family, path, count)
                where = f"{family} {said.get('detected', '')}".strip()
                yield f"{program}, {where}", name, f"{found} of {count} layers", "ok" if is_right else "WRONG"


def _full_size(family: str, place: Path) -> tuple[dict[str, list[int]], dict[str, Path], int]:
    """Write LoRAs of rank 1 for the published model; return its tensors' shapes, the files, and the layers' number."""
    place.mkdir()
    architecture = ARCHITECTURES[family]
    network = architecture.network(META, torch.float16)
    state, layers = {}, {name: layer for name, layer in network.named_modules() if hasattr(layer, "weight")}
    for name, layer in layers.items():
        if f".{name}".endswith(tuple(f".{end}" for end in TARGET_MODULES)):
            rest = [1] * (layer.weight.dim() - 2)
            state[f"{name}.lora_A.weight"] = torch.ones(1, *layer.weight.shape[1:])
            state[f"{name}.lora_B.weight"] = torch.ones(layer.weight.shape[0], 1, *rest)
    lora, target = LoraFile(state, 1, 1.0, {}), LoraTarget(family == "sdxl", set(layers), architecture.side_px)
    files = {form: place / f"{form}.safetensors" for form in EXPORTS.names()}
    for form, path in files.items():
        EXPORTS[form](path, lora, target, None)
    for form in OTHERS:
        halves = {one: [state[f"{one}.lora_{half}.weight"] for half in "AB"] for one in lora.modules}
        files[form.__name__] = lora_forms.write(place / f"{form.__name__}.safetensors", halves, form)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    original = {one.name: list(one.shape) for one in original_layout.unet_tensors(shapes)}
    return original, files, len(lora.modules)


def webui_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Read the text of our images with the page's own parser."""
    if options.webui is None:
        yield "webui", "parameters", "--webui names no checkout of A1111 or Forge", "skipped"
        return
    image = {"prompt": "a red cube, (x:1.3)", "seed": 7, "steps": 4}
    (place / "text.txt").write_text(infotext(image, 64))
    said = ask(python_of(options.environments, "comfyui"), "webui", options.webui, place / "text.txt")
    wanted = {"Prompt": image["prompt"], "Steps": "4", "CFG scale": "1", "Seed": "7", "Size-1": "64", "Size-2": "64"}
    wanted |= {"sampler": "Euler", "schedule": "SGM Uniform"}
    is_right = all(said[name] == value for name, value in wanted.items())
    yield "webui", "parameters", f"{said['sampler']}, {said['schedule']}", "ok" if is_right else "WRONG"


if __name__ == "__main__":
    sys.exit(main())

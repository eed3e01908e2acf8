"""LoRAs in releases of diffusers, by their outputs; and in ComfyUI and sd-scripts, by the layers that they find."""

import argparse
import json
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
from tests.bases.conftest import load
from tests.bases.small_models import write_sd15, write_sdxl
from tests.clients.environments import ENVIRONMENTS, Row, ask, python_of, version_of
from tests.export.test_exports import write_lora
from tests.formats import lora_forms

OUT = Output(quiet=True)
SMALL = {"sdxl": (write_sdxl, "StableDiffusionXLPipeline"), "sd15": (write_sd15, "StableDiffusionPipeline")}
LIMIT = 1e-4  # of the difference between two outputs of a UNet, whose values are within ±10
META = torch.device("meta")
OTHERS = (lora_forms.diffusers_new, lora_forms.diffusers_old, lora_forms.peft_without_prefix)


def diffusers_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
    """Compare the output of each release with ours, with every form of a LoRA whose alpha is not its rank."""
    names = [name for name in ENVIRONMENTS if name.startswith("diffusers")]
    if options.without_diffusers:
        yield from (Row(name, file="LoRAs", figure="--without-diffusers") for name in names)
        return
    for family, (write, pipeline) in SMALL.items():
        folder = write(place / f"small-{family}")
        lora = write_lora(folder, place / f"{family}.safetensors")
        made = export(lora, find_base(str(folder), OUT), place / f"{family}-lora", reporter=OUT)
        loras = {"without": "", "of a run": str(lora)} | {file.path.stem: str(file.path) for file in made.files}
        inputs, ours = our_output(folder, lora)
        save_file(inputs, place / "inputs.safetensors")
        job = {"pipeline": pipeline, "unet": str(folder / "unet"), "loras": loras}
        job |= {"inputs": str(place / "inputs.safetensors"), "output": str(place / "outputs.safetensors")}
        (place / "job.json").write_text(json.dumps(job))
        for name in names:
            said = ask(python_of(options.environments, name), "diffusers_unet", place / "job.json")
            outputs = load_file(place / "outputs.safetensors")
            for file in list(loras)[1:]:
                what = f"{family} LoRA, {file.removeprefix(f'{family}-lora-')}"
                if file in said["errors"]:
                    yield Row("diffusers", said["version"], what, said["errors"][file], False)
                    continue
                far = float((outputs[file] - ours).abs().max())
                bare = float((outputs["without"] - ours).abs().max())
                figure = f"{far:.1g} from ours, {bare:.2g} without"
                yield Row("diffusers", said["version"], what, figure, far < LIMIT < bare)


def our_output(folder: Path, lora: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
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


def layer_rows(options: argparse.Namespace, place: Path) -> Iterator[Row]:
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
                yield Row(program, file=f"{family} LoRAs", figure=f"--{program} names no checkout")
                continue
            job = {"family": family, "shapes": shapes, "loras": {name: str(path) for name, path in loras.items()}}
            (place / "job.json").write_text(json.dumps(job))
            script = {"comfyui": "comfyui_keys", "sd-scripts": "sd_scripts"}[program]
            said = ask(python_of(options.environments, program), script, checkout, place / "job.json")
            for name, path in loras.items():
                found = said["found"][name]
                is_right = found == expected(family, path, count)
                seen = f", a model taken for {said['detected']}" if "detected" in said else ""
                figure = f"{found} of {count} layers{seen}"
                yield Row(program, version_of(checkout), f"{family} LoRA, {name}", figure, is_right)


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
    lora, target = LoraFile(state, 1, 1.0, {}), LoraTarget(family == "sdxl", set(layers), architecture.image_size)
    files = {form: place / f"{form}.safetensors" for form in EXPORTS.names()}
    for form, path in files.items():
        EXPORTS[form](path, lora, target, None)
    for form in OTHERS:
        halves = {one: [state[f"{one}.lora_{half}.weight"] for half in "AB"] for one in lora.modules}
        files[form.__name__] = lora_forms.write(place / f"{form.__name__}.safetensors", halves, form)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    original = {one.name: list(one.shape) for one in original_layout.unet_tensors(shapes)}
    return original, files, len(lora.modules)

"""Package the trained parts: a diffusers folder in 16 bits, the reader, provenance and checksums.

`python -m rapm_cli.bases.demo.recipe.package FOLDER` records the checksums again, once the distilled LoRA lies there.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from rapm_cli.bases.demo.recipe.unet import noise_schedule
from rapm_cli.core.storage.files import file_sha256


def write_package(parts: Path, output: Path, provenance: dict[str, Any]) -> None:
    """Write `output/base` (loadable by plain diffusers), the reader, `provenance.json` and `checksums.json`.

    Args:
        parts: Folder that the stages wrote.
        output: Folder to write; `rapm_cli/bases/demo/weights` is a copy of it.
        provenance: Settings, machine, times and log of the training, as JSON values.
    """
    encoders = {
        "text_encoder": CLIPTextModel.from_pretrained(parts / "text_encoder"),
        "text_encoder_2": CLIPTextModelWithProjection.from_pretrained(parts / "text_encoder_2"),
    }
    pipeline = StableDiffusionXLPipeline(
        vae=AutoencoderKL.from_pretrained(parts / "vae-sharp"),
        unet=UNet2DConditionModel.from_pretrained(parts / "unet"),
        tokenizer=CLIPTokenizer.from_pretrained(parts / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(parts / "tokenizer_2"),
        scheduler=noise_schedule(),
        force_zeros_for_empty_prompt=True,
        add_watermarker=False,
        **encoders,
    ).to(torch.float16)
    pipeline.save_pretrained(output / "base", safe_serialization=True)
    for name in encoders:
        path = output / "base" / name / "config.json"
        config = json.loads(path.read_text())
        config["dtype"] = "float32"  # without it, from_pretrained loads float16 encoders beside a float32 UNet
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    reader = {name: value.half() for name, value in load_file(parts / "reader.safetensors").items()}
    save_file(reader, output / "reader.safetensors")
    (output / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    write_checksums(output)


def write_checksums(folder: Path) -> None:
    """Record the sha256 of every file below `folder` in its `checksums.json`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "checksums.json")
    sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
    (folder / "checksums.json").write_text(json.dumps(sums, indent=2) + "\n")


if __name__ == "__main__":
    write_checksums(Path(sys.argv[1]))

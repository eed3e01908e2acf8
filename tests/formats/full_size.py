"""Fuse a LoRA into a full-size Stable Diffusion XL of random weights; print time, memory and missing keys.

`python -m tests.formats.full_size` needs 21 GB of disk and 10 GB of memory.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import diffusers
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.cli.console import Output
from rapm_cli.core.network.student import TARGET_MODULES
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.formats.safetensors_writer import DTYPE_NAMES, OutputTensor, stream_tensors

META = torch.device("meta")
CLIP = {"vocab_size": 49408, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "projection_dim": 768}
ENCODERS = {
    "text_encoder": (
        CLIPTextModel,
        CLIPTextConfig(**CLIP, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    ),
    "text_encoder_2": (
        CLIPTextModelWithProjection,
        CLIPTextConfig(
            **CLIP | {"hidden_act": "gelu", "projection_dim": 1280},
            hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20,
        ),
    ),
}  # fmt: skip


def write_base(folder: Path) -> None:
    """Write a model in half precision, tensor by tensor."""
    shutil.copytree(WEIGHTS / "base", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    architecture = ARCHITECTURES["sdxl"]
    parts = {
        "unet": architecture.network(META, torch.float16),
        "vae": architecture.autoencoder(META, torch.float16),
    }
    for name, part in parts.items():
        part.save_config(folder / name)
        write_part(folder / name / "diffusion_pytorch_model.safetensors", part)
    for name, (kind, config) in ENCODERS.items():
        with META:
            encoder = kind(config).half()
        config.save_pretrained(folder / name)
        write_part(folder / name / "model.safetensors", encoder)


def write_part(path: Path, part: torch.nn.Module) -> None:
    """Write small random weights in the shapes of a part."""
    outputs = {
        name: OutputTensor(
            (), DTYPE_NAMES[value.dtype], tuple(value.shape), lambda shape=value.shape: 0.02 * torch.randn(shape)
        )
        for name, value in part.state_dict().items()
        if value.dtype.is_floating_point
    }
    stream_tensors(path, outputs, {"format": "pt"})


def write_lora(path: Path, rank: int) -> int:
    """Write a random LoRA on all modules that rapm trains, and return their number."""
    state = {}
    for name, layer in ARCHITECTURES["sdxl"].network(META, torch.float16).named_modules():
        if hasattr(layer, "weight") and f".{name}".endswith(tuple(f".{end}" for end in TARGET_MODULES)):
            out, *rest = layer.weight.shape
            state[f"{name}.lora_A.weight"] = 0.02 * torch.randn(rank, *rest)
            state[f"{name}.lora_B.weight"] = 0.02 * torch.randn(out, rank, *[1] * (len(rest) - 1))
    save_lora(path, LoraFile(state, rank, float(rank), {"base": "base"}))
    return len(state) // 2


def main() -> None:
    """Write a base and a LoRA, fuse them, load the result with diffusers, and print the measurements."""
    diffusers.utils.logging.disable_progress_bar()
    diffusers.utils.logging.set_verbosity_error()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rank", type=int, default=1)
    parser.add_argument("--place", type=Path, default=None, help="folder for the files; a temporary one by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.place) as place:
        base, lora, output = (Path(place) / name for name in ("base", "lora.safetensors", "one.safetensors"))
        write_base(base)
        modules = write_lora(lora, options.rank)
        command = [sys.executable, "-m", "rapm_cli", "export", str(lora), "--base", str(base)]
        begun = time.perf_counter()
        done = subprocess.run(
            [*command, "--fuse", "--single-file", "--output", str(output), "--json", "--quiet"],
            stdout=subprocess.PIPE, check=True, env=os.environ | {"RAPM_HOME": place},
        )  # fmt: skip
        seconds, peak = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**10
        report = json.loads(done.stdout)
        pipe = StableDiffusionXLPipeline.from_single_file(
            str(output), config=str(base), dtype=torch.float16, local_files_only=True
        )
        loaded = {
            name: part for name in ("unet", "vae", "text_encoder", "text_encoder_2") if (part := getattr(pipe, name))
        }
        lost = [n for part in loaded.values() for n, value in part.named_parameters() if value.is_meta]
        rows = {
            "file": f"{output.stat().st_size / 1e9:.2f} GB, rank {options.rank}, {modules} modules merged",
            "seconds": f"{seconds:.1f}, with every byte read back",
            "peak memory": f"{peak:.0f} MiB",
            "update lost": f"{report['mean_lost']:.2%} on average, {report['worst_lost']:.2%} at worst",
            "diffusers": f"{len(lost)} parameters without a value, {len(loaded)} parts loaded",
        }
        out = Output()
        for name, text in rows.items():
            out.fact(name, text)


if __name__ == "__main__":
    main()

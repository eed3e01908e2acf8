"""The demo base with smaller networks, for tests of what commands do whatever is trained: a third of the time.

Its prompts, text encoders, reader, defaults and sizes of images are the demo base's own. In a process of its own:
`python -m tests.small_demo FOLDER distill --base demo`.
"""

import dataclasses
import shutil
import sys
from pathlib import Path

import pytest
import torch

from rapm_cli.bases import BASES, Weights
from rapm_cli.bases.architectures import architecture_of
from rapm_cli.bases.base import Base
from rapm_cli.bases.demo.base import WEIGHTS

DEMO = BASES["demo"]
UNET = {
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (1, 1),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "norm_num_groups": 4,
}
VAE = {"block_out_channels": (4, 4, 8, 8)}


def write_small_demo(folder: Path) -> Path:
    """Write the base's folder, the same bytes each time."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from tests.bases.small_models import enliven

    shutil.copytree(WEIGHTS / "base", folder)
    generator = torch.Generator().manual_seed(0)
    for name, kind, smaller in (("unet", UNet2DConditionModel, UNET), ("vae", AutoencoderKL, VAE)):
        network = kind.from_config({**kind.load_config(folder / name), **smaller})
        enliven(network, generator)
        network.save_pretrained(folder / name)
    return folder


def small_demo(folder: Path) -> Base:
    """Return the base of that folder. No LoRA ships with it."""
    weights = Weights(folder, "small demo")
    return dataclasses.replace(
        DEMO,
        locate=lambda reporter: weights,
        identity=lambda reporter: weights.identity,
        architecture=lambda reporter: architecture_of(weights),
        student=None,
    )


def use_small_demo(folder: Path, patch: pytest.MonkeyPatch | None = None) -> None:
    """Put it in the demo base's place in this process, until the patch is undone."""
    (patch or pytest.MonkeyPatch()).setitem(BASES._things, "demo", small_demo(folder))


if __name__ == "__main__":
    from rapm_cli.cli.app import run

    use_small_demo(Path(sys.argv.pop(1)))
    run()

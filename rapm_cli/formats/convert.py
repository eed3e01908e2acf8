"""LoRAs that other programs pickled, to files of ours."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from rapm_cli.formats.forms import PLAIN
from rapm_cli.formats.lora import plain_lora, save_lora
from rapm_cli.formats.state_dict import read_pickled


def convert_pickle(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    """Write the pickled LoRA of a UNet as a safetensors file in diffusers' form.

    Args:
        source: State dict under any keys that diffusers loads, saved by `torch.save`.
        target: File to write, whole or not at all. Strength is folded into the weights: its alpha is its rank.
        recipe: For the header.

    Raises:
        InputError: It is no plain state dict of finite tensors under a UNet's LoRA keys, or torch is too old.
    """
    save_lora(target, replace(plain_lora(source, read_pickled(source, PLAIN), {}), recipe=recipe))

"""LoRAs that other programs pickled, to files of ours; no code that a pickle names is run."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.errors import InputError
from rapm_cli.formats.forms import refused
from rapm_cli.formats.lora import plain_lora, save_lora

SAFE_TORCH = (2, 10)


def convert_pickle(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    """Write the pickled LoRA of a UNet as a safetensors file in diffusers' form.

    Args:
        source: State dict under any keys that diffusers loads, saved by `torch.save`.
        target: File to write, whole or not at all. Strength is folded into the weights: its alpha is its rank.
        recipe: For the header.

    Raises:
        InputError: It is no plain state dict of finite tensors under a UNet's LoRA keys, or torch is too old.
    """
    save_lora(target, replace(plain_lora(source, _read_pickle(source), {}), recipe=recipe))


def _read_pickle(source: Path) -> dict[str, Tensor]:
    if tuple(map(int, torch.__version__.split(".")[:2])) < SAFE_TORCH:
        raise InputError(
            f"{source} is a pickle, and torch {torch.__version__} can be made to run code by one (CVE-2026-24747)",
            "install torch 2.10 or newer",
        )
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch itself would not write
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise refused(source, "holds more than tensors, or is damaged") from error
    if not isinstance(state, dict) or not state:
        raise refused(source, "is not a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
            raise refused(source, f"has under {name!r} what is not a dense tensor")
    return state

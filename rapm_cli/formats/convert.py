"""LoRAs that other programs pickled, to files of ours; no code that a pickle names is run."""

import pickle
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.errors import InputError
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.formats.recipe import PREFIX

_UNREADABLE = (pickle.UnpicklingError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError)


def convert_pickle(source: Path, target: Path, recipe: dict[str, Any]) -> None:
    """Write the pickled LoRA of a Stable Diffusion XL as a safetensors file in diffusers' form.

    Args:
        source: State dict under kohya's, diffusers' or peft's keys, saved by `torch.save`.
        target: File to write, whole or not at all. Strength is folded into the weights: its alpha is its rank.
        recipe: For the header.

    Raises:
        InputError: It is no plain state dict of finite tensors under a UNet's LoRA keys, or its ranks differ.
    """
    import diffusers

    state = _fold_alphas(_read_pickle(source), source)
    try:
        # Two resnets a block: the blocks' numbers in the names of the original SDXL depend on it.
        config = SimpleNamespace(layers_per_block=2)
        state, _ = diffusers.StableDiffusionXLPipeline.lora_state_dict(state, unet_config=config)
    except _UNREADABLE as error:
        raise _refused(source, "has keys that diffusers cannot map") from error
    if other := [name for name in state if not name.startswith(PREFIX)]:
        raise _refused(source, f"adapts more than the UNet, first {other[0]}")
    state = diffusers.utils.convert_unet_state_dict_to_peft(
        {name.removeprefix(PREFIX): value for name, value in state.items()}
    )
    ranks = {value.shape[0] for name, value in state.items() if ".lora_A." in name}
    if len(ranks) != 1:
        raise _refused(source, f"has updates of several ranks, {sorted(ranks)}")
    rank = ranks.pop()
    save_lora(target, LoraFile(state, rank, float(rank), recipe))


def _read_pickle(source: Path) -> dict[str, Tensor]:
    try:
        with warnings.catch_warnings(action="ignore"):  # of pickles that torch itself would not write
            state = torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _refused(source, "holds more than tensors, or is damaged") from error
    if not isinstance(state, dict) or not state:
        raise _refused(source, "is not a state dict")
    for name, value in state.items():
        if not isinstance(name, str) or "lora" not in name:
            raise _refused(source, f"has the key {name!r}, which is not a LoRA's")
        is_dense = isinstance(value, Tensor) and value.layout == torch.strided and bool(value.isfinite().all())
        if not is_dense or (value.numel() != 1 if name.endswith(".alpha") else value.dim() < 2):
            raise _refused(source, f"has under {name} what is not a dense tensor of finite values and a LoRA's shape")
    return state


def _fold_alphas(state: dict[str, Tensor], source: Path) -> dict[str, Tensor]:
    """The same updates in float32 without kohya's alphas: every up weight times alpha / rank."""
    alphas = {name.removesuffix(".alpha"): float(value) for name, value in state.items() if name.endswith(".alpha")}
    folded = {name: value.float().contiguous() for name, value in state.items() if not name.endswith(".alpha")}
    for module, alpha in alphas.items():
        down, up = f"{module}.lora_down.weight", f"{module}.lora_up.weight"
        if down not in folded or up not in folded:
            raise _refused(source, f"has an alpha for {module} and not both weights")
        folded[up] = folded[up] * (alpha / folded[down].shape[0])
    return folded


def _refused(source: Path, reason: str) -> InputError:
    return InputError(f"{source} {reason}", "give a LoRA of Stable Diffusion XL's UNet that its author vouches for")

"""A distilled LoRA as one safetensors file in diffusers' own form, with its recipe in the header."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.backbone import Backbone
from rapm_cli.core.errors import InputError
from rapm_cli.core.student import TARGET_MODULES, attach_lora, load_lora_state
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import ADAPTER_KEY, PREFIX, RECIPE_KEY, lora_facts
from rapm_cli.formats.tensors import write_tensors


@dataclass(frozen=True)
class LoraFile:
    """A LoRA on disk.

    Args:
        state: Peft keys, without prefix, to float tensors.
        rank: Rank of every update.
        alpha: The update is (alpha / rank) B A.
        recipe: How it was made and how it is sampled; empty for files that rapm did not write.
    """

    state: dict[str, Tensor]
    rank: int
    alpha: float
    recipe: dict[str, Any]

    def digest(self) -> str:
        """Sixteen hexadecimal digits of the update alone: equal for files that draw the same pictures."""
        digest = hashlib.sha256(repr((self.rank, self.alpha)).encode())
        for name in sorted(self.state):
            value = self.state[name].contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]


def save_lora(path: Path, lora: LoraFile) -> None:
    """Write a file that plain `load_lora_weights` reads at the right strength, and read it back.

    Raises:
        VerificationError: What was read back differs from what was written.
    """
    adapter = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": sorted(TARGET_MODULES), "lora_dropout": 0.0}
    metadata = {
        "format": "pt",
        ADAPTER_KEY: json.dumps({PREFIX + name: value for name, value in adapter.items()}, sort_keys=True),
        RECIPE_KEY: json.dumps(lora.recipe, sort_keys=True),
    }
    write_tensors(path, {PREFIX + name: value for name, value in lora.state.items()}, metadata)


def load_lora(path: Path) -> LoraFile:
    """Read a LoRA in diffusers' form.

    Raises:
        InputError: The file is damaged, of another kind, or has values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    rank, alpha, recipe = lora_facts(path, header)
    try:
        state = {name.removeprefix(PREFIX): value for name, value in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}", "copy or download it again") from error
    broken = [name for name, value in state.items() if not value.isfinite().all()]
    if broken:
        raise InputError(
            f"{path} has {len(broken)} tensors with NaN or infinite values, first {broken[0]}", "do not use it"
        )
    return LoraFile(state, rank, alpha, recipe)


def apply_lora(backbone: Backbone, lora: LoraFile, path: Path) -> None:
    """Attach a LoRA to a backbone without one.

    Raises:
        InputError: It was made for another base.
    """
    attach_lora(backbone, lora.rank, lora.alpha)
    try:
        load_lora_state(backbone, lora.state)
    except ValueError as error:
        raise InputError(
            f"{path} does not fit this base ({error})", f"it was made for --base {lora.recipe.get('base', 'unknown')}"
        ) from error

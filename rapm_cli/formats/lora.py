"""A distilled LoRA as one safetensors file in diffusers' own form, with its recipe in the header."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.samplers import Sampler
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.student import TARGET_MODULES, attach_lora, load_lora_state
from rapm_cli.formats.forms import by_module, refuse_broken, refused
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import ADAPTER_KEY, PREFIX, RECIPE_KEY, is_of_rapm, lora_facts, recipe_of
from rapm_cli.formats.strength import of_one_rank
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

    @property
    def sampler(self) -> Sampler:
        """How it is sampled; with DDIM where its file does not say by which method it was made.

        Raises:
            ConfigError: It was made by a method that this version does not know.
        """
        return sampler_of(self.recipe.get("training", {}))

    @property
    def modules(self) -> list[str]:
        """The layers that it changes, in order of their names."""
        return sorted(name.removesuffix(".lora_A.weight") for name in self.state if name.endswith(".lora_A.weight"))

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
    # What rapm trained has every layer of its kinds. Of another LoRA each layer is named: diffusers would look for
    # those of a kind that it lacks, and pass over those of no kind.
    targets = sorted(TARGET_MODULES) if "training" in lora.recipe else lora.modules
    adapter = {"r": lora.rank, "lora_alpha": lora.alpha, "target_modules": targets, "lora_dropout": 0.0}
    metadata = {
        "format": "pt",
        ADAPTER_KEY: json.dumps({PREFIX + name: value for name, value in adapter.items()}, sort_keys=True),
        RECIPE_KEY: json.dumps(lora.recipe, sort_keys=True),
    }
    write_tensors(path, {PREFIX + name: value for name, value in lora.state.items()}, metadata)


def load_lora(path: Path) -> LoraFile:
    """Read a LoRA: what rapm wrote as it is, any other with its strength folded in.

    Raises:
        InputError: The file is damaged, is no plain LoRA of a UNet, or has values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    facts = lora_facts(path, header) if is_of_rapm(header) else None
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}", "copy or download it again") from error
    if facts is None:
        return plain_lora(path, state, header.metadata)
    refuse_broken(path, state)
    return LoraFile({name.removeprefix(PREFIX): value for name, value in state.items()}, *facts)


def plain_lora(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraFile:
    """A LoRA out of any form that diffusers loads; its alpha is its rank.

    Args:
        path: For messages.
        state: What the file holds.
        metadata: Of its header.

    Raises:
        InputError: It is no plain LoRA of a UNet alone.
    """
    updates = by_module(path, state)
    try:
        recipe = recipe_of(metadata)
    except ValueError as error:
        raise refused(path, f"has a recipe that is none: {error}") from error
    rank = max(update.rank for update in updates.values())
    return LoraFile(of_one_rank(path, updates, metadata), rank, float(rank), recipe)


def apply_lora(backbone: Backbone, lora: LoraFile, path: Path) -> None:
    """Attach a LoRA to a backbone without one.

    Raises:
        InputError: It was made for another base.
    """
    try:
        attach_lora(backbone, lora.rank, lora.alpha, modules=lora.modules)
        load_lora_state(backbone, lora.state)
    except ValueError as error:
        raise does_not_fit(path, lora, str(error)) from error


def does_not_fit(path: Path, lora: LoraFile, reason: str) -> InputError:
    """The error of a LoRA on a base that it was not made for."""
    base = lora.recipe.get("base")
    remedy = f"it was made for --base {base}" if base else "give the --base that it was made for"
    return InputError(f"{path} does not fit this base ({reason})", remedy)

"""A distilled LoRA as one safetensors file in diffusers' format, with its recipe in the header."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.samplers import SAMPLERS, Sampler
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.student import TARGET_MODULES, attach_lora, load_lora_state
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora_keys import check_finite, lora_error, updates_by_layer
from rapm_cli.formats.lora_scale import fold_scale
from rapm_cli.formats.recipe import (
    ADAPTER_KEY,
    PREFIX,
    RECIPE_KEY,
    is_rapm_lora,
    parse_lora_header,
    parse_recipe,
    with_adapter_config,
)
from rapm_cli.formats.safetensors_writer import write_tensors


@dataclass(frozen=True)
class LoraFile:
    """The content of a LoRA file.

    Args:
        state: Float tensors under peft's keys, without a prefix.
        rank: Rank of every update.
        alpha: Alpha of every update, which is (alpha / rank) B A.
        recipe: Settings of training and sampling; empty for files that rapm did not write.
    """

    state: dict[str, Tensor]
    rank: int
    alpha: float
    recipe: dict[str, Any]

    @property
    def sampler(self) -> Sampler:
        """The student's sampler; see `recipe_sampler`."""
        return recipe_sampler(self.recipe)

    @property
    def modules(self) -> list[str]:
        """Names of the layers that the LoRA changes, sorted."""
        return sorted(name.removesuffix(".lora_A.weight") for name in self.state if name.endswith(".lora_A.weight"))

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """Return A and B of a layer."""
        return self.state[f"{module}.lora_A.weight"], self.state[f"{module}.lora_B.weight"]

    def digest(self) -> str:
        """Return sixteen hexadecimal digits of the update alone; files that sample the same images have the same."""
        digest = hashlib.sha256(repr((self.rank, self.alpha)).encode())
        for name in sorted(self.state):
            value = self.state[name].contiguous()
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            digest.update(value.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:16]

    def folded(self, dtype: torch.dtype | None = None) -> "LoraFile":
        """Return the same update with its scale in B: alpha then equals the rank, and every program applies 1.

        Args:
            dtype: Dtype of the returned tensors; None keeps theirs. The scale is applied in float32 before.
        """
        scale = self.alpha / self.rank
        state = {
            name: (value.float() * scale if scale != 1 and ".lora_B." in name else value).to(dtype or value.dtype)
            for name, value in self.state.items()
        }
        return replace(self, state=state, alpha=float(self.rank))


def recipe_sampler(recipe: Mapping[str, Any]) -> Sampler:
    """Return the sampler that a recipe names; without one that of its method, and DDIM where it names no method.

    Raises:
        ConfigError: This version does not know the sampler or the method.
    """
    name = recipe.get("sampler", {}).get("name")
    return SAMPLERS[name] if name else sampler_of(recipe.get("training", {}))


def save_lora(path: Path, lora: LoraFile, dtype: torch.dtype | None = None) -> None:
    """Write a file that `load_lora_weights` of diffusers 0.30.3 and newer loads with the right scale, and verify it.

    Args:
        path: File to write; its folder is made.
        lora: LoRA to write.
        dtype: Dtype of the written weights; None keeps the LoRA's own.

    Raises:
        DiskError: The file cannot be written.
        VerificationError: The bytes read back differ from those written.
    """
    # A LoRA that rapm trained has every layer of its kinds, so the kinds are enough. For any other LoRA each layer is
    # listed: by kinds, diffusers would look for layers that the LoRA lacks, and skip layers of other kinds.
    is_ours = "training" in lora.recipe and "absorbed" not in lora.recipe
    targets = sorted(TARGET_MODULES) if is_ours else lora.modules
    # diffusers 0.34 to 0.39 need the patterns. Those before ignore alpha, so the scale is in B.
    adapter = {"r": lora.rank, "lora_alpha": float(lora.rank), "rank_pattern": {}, "alpha_pattern": {}}
    adapter |= {"target_modules": targets, "lora_dropout": 0.0}
    metadata = {
        "format": "pt",
        ADAPTER_KEY: json.dumps({PREFIX + name: value for name, value in adapter.items()}, sort_keys=True),
        RECIPE_KEY: json.dumps(lora.recipe, sort_keys=True),
    }
    write_tensors(path, {PREFIX + name: value for name, value in lora.folded(dtype).state.items()}, metadata)


def load_lora(path: Path) -> LoraFile:
    """Read a LoRA. A file of rapm is read unchanged; any other gets its scale folded into the weights.

    Raises:
        InputError: The file is damaged, is not a plain LoRA of a UNet, or has values that are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    header = read_header(path)
    facts = parse_lora_header(path, header) if is_rapm_lora(header) else None
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} cannot be read: {error}", "copy or download it again") from error
    if facts is None:
        return convert_lora(path, state, with_adapter_config(path, header.metadata))
    check_finite(path, state)
    return LoraFile({name.removeprefix(PREFIX): value for name, value in state.items()}, *facts)


def convert_lora(path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> LoraFile:
    """Convert a LoRA from any keys that diffusers loads; the result's alpha equals its rank.

    Args:
        path: LoRA's file, for messages.
        state: Tensors of the file.
        metadata: Metadata of the file's header.

    Raises:
        InputError: The LoRA is not a plain one of a UNet alone.
    """
    updates = updates_by_layer(path, state)
    try:
        recipe = parse_recipe(metadata)
    except ValueError as error:
        raise lora_error(path, f"has a malformed recipe: {error}") from error
    rank = max(update.rank for update in updates.values())
    return LoraFile(fold_scale(path, updates, metadata), rank, float(rank), recipe)


def apply_lora(backbone: Backbone, lora: LoraFile, path: Path) -> None:
    """Attach a LoRA to a backbone that has none.

    Args:
        backbone: Backbone of the base; its `student` then uses the LoRA.
        lora: LoRA to attach.
        path: LoRA's file, for messages.

    Raises:
        InputError: The LoRA was made for another base.
    """
    try:
        attach_lora(backbone, lora.rank, lora.alpha, modules=lora.modules)
        load_lora_state(backbone, lora.state)
    except ValueError as error:
        raise wrong_base_error(path, lora, str(error)) from error


def wrong_base_error(path: Path, lora: LoraFile, reason: str) -> InputError:
    """Return the error for a LoRA on a base that it was not made for."""
    base = lora.recipe.get("base")
    remedy = f"it was made for --base {base}" if base else "give the --base that it was made for"
    return InputError(f"{path} does not fit this base ({reason})", remedy)

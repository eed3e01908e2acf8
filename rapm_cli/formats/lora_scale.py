"""Fold a LoRA's scale (alpha / rank) into its weights, from alpha tensors or from peft's settings in the header."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.formats.lora_keys import LayerUpdate, lora_error
from rapm_cli.formats.recipe import ADAPTER_KEY, PREFIX

PLAIN_SETTINGS = {  # values of peft's settings that leave the update a scaled B A; rapm refuses other values
    "use_dora": (False, None), "use_qalora": (False, None), "lora_bias": (False, None), "bias": ("none", None),
    "modules_to_save": ([], None), "layer_replication": ([], None), "target_parameters": ([], None),
    "use_bdlora": (False, None), "kasa_config": (None,), "arrow_config": (None,), "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),  # others also change the base
}  # fmt: skip
LITERAL_NAME = re.compile(r"\^?[\w.-]+")  # a pattern that is a plain name, in which `.` matches only itself
# Limits of padding to one rank, so that a small file cannot fill the memory: the larger of the two holds.
MAX_PADDING_FACTOR = 16  # times the number of values in the file
MAX_VALUES = 2**30  # values of a LoRA of rank 128 on all layers of SDXL


def fold_scale(path: Path, updates: Mapping[str, LayerUpdate], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Return float32 tensors under peft's keys, whose products B A are the updates.

    All layers get the highest rank: lower ranks are padded with zeros, which changes no product. So the rest of rapm,
    and every program that a LoRA is exported for, sees one rank and one alpha.

    Args:
        path: LoRA's file, for messages.
        updates: Updates by layer.
        metadata: Metadata of the file's header, where diffusers stores peft's settings with rank and alpha.

    Raises:
        InputError: The header contradicts the tensors, or the scale cannot be determined.
    """
    has_alphas = any(update.alpha is not None for update in updates.values())
    settings = _peft_settings(path, metadata)
    if has_alphas and settings:
        raise lora_error(path, "gives its scale twice: in alpha tensors and in its header")
    rank = max(update.rank for update in updates.values())
    sizes = {module: update.down.numel() + update.up.numel() for module, update in updates.items()}
    padded = sum(size * rank // updates[module].rank for module, size in sizes.items())
    if padded > max(MAX_VALUES, MAX_PADDING_FACTOR * sum(sizes.values())):
        raise lora_error(path, f"has a layer of rank {rank}, and most layers have a far lower rank")
    scales = _scales_from_settings(path, settings, updates) if settings else _scales_from_alphas(updates)
    state = {}
    for module, update in updates.items():
        up = update.up.float() * scales[module]
        if not up.isfinite().all():
            raise lora_error(path, f"scales {module} by {scales[module]:g}, which makes it infinite")
        state[f"{module}.lora_A.weight"] = to_rank(update.down.float(), 0, rank)
        state[f"{module}.lora_B.weight"] = to_rank(up, 1, rank)
    return state


def to_rank(value: Tensor, dim: int, rank: int) -> Tensor:
    """Return A (`dim` 0) or B (`dim` 1) of a layer with zeros up to a rank; B A stays the same."""
    shape = list(value.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim).contiguous()


def _scales_from_alphas(updates: Mapping[str, LayerUpdate]) -> dict[str, float]:
    """Return alpha / rank of each layer; 1 for a layer without an alpha, as in kohya's trainer."""
    return {module: 1.0 if update.alpha is None else update.alpha / update.rank for module, update in updates.items()}


def _peft_settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return peft's settings of the UNet's LoRA; empty where the header has none."""
    try:
        stored = json.loads(metadata.get(ADAPTER_KEY, "{}"))
        prefix = PREFIX if any(name.startswith(PREFIX) for name in stored) else ""
        settings = {name.removeprefix(prefix): value for name, value in stored.items() if name.startswith(prefix)}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise lora_error(path, f"has a header whose {ADAPTER_KEY} cannot be read") from error
    if other := next((name for name, plain in PLAIN_SETTINGS.items() if settings.get(name) not in plain), None):
        raise lora_error(path, f"has the setting {other}, which rapm does not support")
    return settings if "r" in settings else {}


def _scales_from_settings(path: Path, settings: dict[str, Any], updates: Mapping[str, LayerUpdate]) -> dict[str, float]:
    ranks = _PatternLookup(path, settings, "rank_pattern", "r")
    alphas = _PatternLookup(path, settings, "alpha_pattern", "lora_alpha")
    root = 0.5 if settings.get("use_rslora") else 1.0
    scales = {}
    for module, update in updates.items():
        if (stated := ranks.value_for(module)) != update.rank:
            raise lora_error(path, f"says rank {stated:g} for {module}, whose rank is {update.rank}")
        scales[module] = alphas.value_for(module) / update.rank**root
    return scales


class _PatternLookup:
    """A number for each layer, as peft looks it up: from the first pattern that equals the name or its end.

    Args:
        path: LoRA's file, for messages.
        settings: Settings of peft.
        patterns: Name of the setting with numbers by pattern.
        default: Name of the setting with the number of all other layers.

    Raises:
        InputError: A pattern is a regular expression, or a number is not finite.
    """

    def __init__(self, path: Path, settings: dict[str, Any], patterns: str, default: str) -> None:
        try:
            named = {name: float(value) for name, value in (settings.get(patterns) or {}).items()}
            self._default = float(settings[default])
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise lora_error(path, f"has {patterns} or {default} in a form that is not peft's") from error
        if not all(map(math.isfinite, (self._default, *named.values()))):
            raise lora_error(path, f"has no finite {default}")
        if regular := next((name for name in named if not LITERAL_NAME.fullmatch(name)), None):
            raise lora_error(path, f"has {regular[:100]!r} in its {patterns}, and rapm reads plain names only")
        self._places = {name: (place, value) for place, (name, value) in enumerate(named.items())}

    def value_for(self, module: str) -> float:
        """Return the number of one layer."""
        parts = module.split(".")
        names = [f"^{module}", *(".".join(parts[k:]) for k in range(len(parts)))]
        return min((self._places[name] for name in names if name in self._places), default=(0, self._default))[1]

"""A LoRA's strength, wherever its file says it, folded into the weights: afterwards alpha is the rank."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.formats.forms import Update, refused
from rapm_cli.formats.recipe import ADAPTER_KEY, PREFIX

PLAIN = {  # peft's settings that make an update anything else than a scaled B A, and where they do not
    "use_dora": (False, None), "use_qalora": (False, None), "lora_bias": (False, None), "bias": ("none", None),
    "modules_to_save": ([], None), "layer_replication": ([], None), "target_parameters": ([], None),
    "use_bdlora": (False, None), "kasa_config": (None,), "arrow_config": (None,), "alora_invocation_tokens": (None,),
    "init_lora_weights": (True, False, "gaussian", "orthogonal", "eva", None),  # others change the base's weights too
}  # fmt: skip
LITERAL = re.compile(r"\^?[\w.-]+")  # a pattern that is a name; `.` stands for itself
MAX_PADDING = 16  # times the numbers in the file, or
MAX_NUMBERS = 2**30  # what a rank of 128 on all layers of SDXL has: a small file must not fill the memory


def of_one_rank(path: Path, updates: Mapping[str, Update], metadata: Mapping[str, str]) -> dict[str, Tensor]:
    """Peft keys to float32 tensors whose products B A are the updates.

    Lower ranks are padded with zeros to the highest, which changes no product. Most files have one rank anyway, and
    so every part of rapm, and every program that a LoRA is exported for, is given one rank and one alpha.

    Args:
        path: For messages.
        updates: By layer.
        metadata: Of the file; diffusers keeps peft's settings there, and with them the strength.

    Raises:
        InputError: The header contradicts the tensors, or the strength cannot be understood.
    """
    has_alphas = any(update.alpha is not None for update in updates.values())
    settings = _settings(path, metadata)
    if has_alphas and settings:
        raise refused(path, "says its strength twice, with alphas and in its header")
    rank = max(update.rank for update in updates.values())
    sizes = {module: update.down.numel() + update.up.numel() for module, update in updates.items()}
    padded = sum(size * rank // updates[module].rank for module, size in sizes.items())
    if padded > max(MAX_NUMBERS, MAX_PADDING * sum(sizes.values())):
        raise refused(path, f"has a rank of {rank} and mostly far lower ones")
    scales = _scales_of_header(path, settings, updates) if settings else _scales_of_tensors(updates)
    state = {}
    for module, update in updates.items():
        up = update.up.float() * scales[module]
        if not up.isfinite().all():
            raise refused(path, f"has a strength of {scales[module]:g} for {module}")
        state[f"{module}.lora_A.weight"] = _padded(update.down.float(), 0, rank)
        state[f"{module}.lora_B.weight"] = _padded(up, 1, rank)
    return state


def _padded(value: Tensor, dim: int, rank: int) -> Tensor:
    shape = list(value.shape)
    shape[dim] = rank - shape[dim]
    return torch.cat([value, value.new_zeros(shape)], dim).contiguous()


def _scales_of_tensors(updates: Mapping[str, Update]) -> dict[str, float]:
    """Alpha / rank; 1 for a layer without an alpha, as in kohya's own trainer."""
    return {module: 1.0 if update.alpha is None else update.alpha / update.rank for module, update in updates.items()}


def _settings(path: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """Peft's settings of the UNet's LoRA; empty where the header has none."""
    try:
        said = json.loads(metadata.get(ADAPTER_KEY, "{}"))
        prefix = PREFIX if any(name.startswith(PREFIX) for name in said) else ""
        settings = {name.removeprefix(prefix): value for name, value in said.items() if name.startswith(prefix)}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise refused(path, f"has a header whose {ADAPTER_KEY} cannot be read") from error
    if other := next((name for name, plain in PLAIN.items() if settings.get(name) not in plain), None):
        raise refused(path, f"is a LoRA with {other}, which rapm does not read")
    return settings if "r" in settings else {}


def _scales_of_header(path: Path, settings: dict[str, Any], updates: Mapping[str, Update]) -> dict[str, float]:
    ranks = _Patterns(path, settings, "rank_pattern", "r")
    alphas = _Patterns(path, settings, "alpha_pattern", "lora_alpha")
    root = 0.5 if settings.get("use_rslora") else 1.0
    scales = {}
    for module, update in updates.items():
        if (said := ranks.of(module)) != update.rank:
            raise refused(path, f"says rank {said:g} for {module}, whose rank is {update.rank}")
        scales[module] = alphas.of(module) / update.rank**root
    return scales


class _Patterns:
    """A number for each layer: of the first pattern that is its name or the end of it, as peft looks it up.

    Args:
        path: For messages.
        settings: Of peft.
        patterns: Which of them has the names.
        usual: Which of them has the number of all other layers.

    Raises:
        InputError: A name is a regular expression, or something is no finite number.
    """

    def __init__(self, path: Path, settings: dict[str, Any], patterns: str, usual: str) -> None:
        try:
            named = {name: float(value) for name, value in (settings.get(patterns) or {}).items()}
            self._usual = float(settings[usual])
        except (LookupError, ValueError, TypeError, AttributeError, OverflowError) as error:
            raise refused(path, f"does not say its {patterns} and {usual} as peft does") from error
        if not all(map(math.isfinite, (self._usual, *named.values()))):
            raise refused(path, f"has no finite {usual}")
        if regular := next((name for name in named if not LITERAL.fullmatch(name)), None):
            raise refused(path, f"has {regular[:100]!r} in its {patterns}, which rapm does not read")
        self._places = {name: (place, value) for place, (name, value) in enumerate(named.items())}

    def of(self, module: str) -> float:
        """The number of one layer."""
        parts = module.split(".")
        names = [f"^{module}", *(".".join(parts[k:]) for k in range(len(parts)))]
        return min((self._places[name] for name in names if name in self._places), default=(0, self._usual))[1]

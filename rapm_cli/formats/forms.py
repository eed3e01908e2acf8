"""LoRAs under every form of keys that diffusers loads, as the updates of layers by their name in the UNet."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.programs import OTHER_KINDS
from rapm_cli.formats.recipe import PREFIX

KOHYA, WRAPPER = "lora_unet_", "base_model.model."
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_")
UP_HALVES = (".up.", ".lora_up.", ".lora_B.")
SGM_CONFIG = SimpleNamespace(layers_per_block=2)  # both models' original code counts two resnets a block
WEIGHT = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")  # with or without the name of an adapter
MAX_NAME = 300
PLAIN = "give a plain LoRA of the UNet of a Stable Diffusion XL or 1.5"
UNMAPPED = (ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class Update:
    """What a LoRA adds to one layer, (alpha / rank) B A.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B, (out, r) or (out, r, 1, 1).
        alpha: None where no tensor says it.
    """

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.down)


def refused(path: Path, reason: str) -> InputError:
    """The error of a file that is no LoRA for us."""
    return InputError(f"{path} {reason}", PLAIN)


def refuse_broken(path: Path, state: Mapping[str, Tensor]) -> None:
    """Stop at values that are not finite.

    Raises:
        InputError: There are some.
    """
    broken = [name for name, value in state.items() if not value.float().isfinite().all()]
    if broken:
        raise InputError(
            f"{path} has {len(broken)} tensors with NaN or infinite values, first {broken[0]}", "do not use it"
        )


def by_module(path: Path, state: Mapping[str, Tensor]) -> dict[str, Update]:
    """Updates by the names of their layers, such as `mid_block.resnets.0.conv1`.

    Args:
        path: For messages.
        state: Under keys of peft, of diffusers, new or old, or of kohya, by the blocks of diffusers or of SDXL's
            original code. A part for the text encoders is left out where it is zero, as training left alone has it.

    Raises:
        InputError: It is no plain LoRA of a UNet alone, or is damaged.
    """
    if not any("lora" in name for name in state):
        raise refused(path, "holds no LoRA")
    for name, value in state.items():
        _refuse_other_kinds(path, name, value)
    refuse_broken(path, state)
    parts: dict[str, dict[str, Tensor]] = {}
    for name, value in _under_peft_keys(path, _without_text_encoders(path, state)):
        module, part = _split(path, name)
        known = parts.setdefault(module, {}).setdefault(part, value)
        if known.shape != value.shape or not (known.float() == value.float()).all():  # 8-bit floats do not compare
            raise refused(path, f"has two different values for {name}")
    if not parts:
        raise refused(path, "holds no LoRA of a UNet")
    return {module: _update(path, module, halves) for module, halves in parts.items()}


def _refuse_other_kinds(path: Path, name: str, value: Tensor) -> None:
    if kind := next((kind for piece, kind in OTHER_KINDS.items() if piece in name), None):
        raise refused(path, f"is no plain LoRA but {kind}, by its key {name!r}")
    is_alpha = name.endswith(".alpha")
    is_fit = value.numel() == 1 if is_alpha else value.dtype.is_floating_point and value.dim() in (2, 4)
    if not is_fit or value.numel() == 0 or value.is_complex() or len(name) > MAX_NAME:
        raise refused(path, f"has a {value.dtype} of shape {tuple(value.shape)} under {name[:MAX_NAME]!r}")


def _without_text_encoders(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        is_up = name.startswith(TEXT_ENCODERS) and any(half in name for half in UP_HALVES)
        if is_up and value.any():  # B is zero where nothing was trained
            raise refused(path, f"also changes a text encoder, first by {name!r}; a few-step student changes the UNet")
    return {name: value for name, value in state.items() if not name.startswith(TEXT_ENCODERS)}


def _under_peft_keys(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors under peft's keys, without prefix; a name can come twice."""
    import diffusers

    for name, value in _without_kohya_keys(path, state):
        bare = name.removeprefix(PREFIX).removeprefix(WRAPPER).removeprefix(PREFIX)
        yield from diffusers.utils.convert_unet_state_dict_to_peft({bare: value}).items()


def _without_kohya_keys(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The same tensors, those of kohya's under old keys of diffusers."""
    import diffusers

    loader = diffusers.loaders.StableDiffusionXLLoraLoaderMixin
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name.startswith(KOHYA):
            layers.setdefault(name.split(".")[0], {})[name] = value
        else:
            yield name, value
    for layer, part in layers.items():  # one by one: of a layer that has two names, diffusers would drop one unseen
        try:
            weights, alphas = loader.lora_state_dict(part, unet_config=SGM_CONFIG)
        except UNMAPPED as error:
            raise refused(path, f"has keys for {layer} that diffusers cannot map") from error
        yield from weights.items()
        yield from ((name, torch.tensor(alpha)) for name, alpha in alphas.items())


def _split(path: Path, name: str) -> tuple[str, str]:
    """A peft key's layer, and which part of its update it is: "A", "B" or "alpha"."""
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha").removesuffix(".lora_A.weight"), "alpha"
    if match := WEIGHT.fullmatch(name):
        return match[1], match[2]
    raise refused(path, f"has the key {name!r}, which is not one of a UNet's LoRA")


def _update(path: Path, module: str, parts: Mapping[str, Tensor]) -> Update:
    if not parts.keys() >= {"A", "B"}:
        raise refused(path, f"lacks half of {module}")
    down, up = parts["A"], parts["B"]
    is_pair = down.dim() == up.dim() and down.shape[0] == up.shape[1] and set(up.shape[2:]) <= {1}
    if not is_pair:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise refused(path, f"has for {module} two halves that do not meet, of shapes {shapes}")
    return Update(down, up, float(parts["alpha"]) if "alpha" in parts else None)

"""Read the LoRA keys of peft, diffusers and kohya as the updates of UNet layers."""

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

KOHYA_PREFIX, PEFT_WRAPPER = "lora_unet_", "base_model.model."
LYCORIS_PREFIX = "lycoris_"  # the same names otherwise
TEXT_ENCODERS = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_")
UP_KEYS = (".up.", ".lora_up.", ".lora_B.")
SGM_CONFIG = SimpleNamespace(layers_per_block=2)  # the original code of both models has two resnets in a block
PEFT_KEY = re.compile(r"(.+)\.lora_([AB])(?:\.[^.]+)?\.weight")  # with or without an adapter's name
MAX_KEY_LENGTH = 300
PLAIN_LORA_REMEDY = "give a plain LoRA of the UNet of a Stable Diffusion XL or 1.5"
CONVERSION_ERRORS = (ValueError, LookupError, TypeError, AttributeError)


@dataclass(frozen=True)
class LayerUpdate:
    """The update of one layer, (alpha / rank) B A.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B, (out, r) or (out, r, 1, 1).
        alpha: Alpha of the layer; None where the file has no tensor for it.
    """

    down: Tensor
    up: Tensor
    alpha: float | None

    @property
    def rank(self) -> int:
        """Number of rows of A."""
        return len(self.down)


def lora_error(path: Path, reason: str) -> InputError:
    """Return the error for a file that rapm does not read as a LoRA."""
    return InputError(f"{path} {reason}", PLAIN_LORA_REMEDY)


def check_finite(path: Path, state: Mapping[str, Tensor]) -> None:
    """Check that all values are finite.

    Args:
        path: LoRA's file, for messages.
        state: Tensors by name.

    Raises:
        InputError: A tensor has NaN or infinite values.
    """
    bad = [name for name, value in state.items() if not value.float().isfinite().all()]
    if bad:
        raise InputError(f"{path} has {len(bad)} tensors with NaN or infinite values, first {bad[0]}", "do not use it")


def updates_by_layer(path: Path, state: Mapping[str, Tensor]) -> dict[str, LayerUpdate]:
    """Return the updates by the diffusers names of their layers, such as `mid_block.resnets.0.conv1`.

    Args:
        path: LoRA's file, for messages.
        state: Tensors under the keys of peft, diffusers (new or old) or kohya (named by diffusers or by SDXL's original
            code). An update of a text encoder is skipped where it is zero, as untrained ones are.

    Raises:
        InputError: The LoRA is not a plain one of a UNet alone, or is damaged.
    """
    if not any("lora" in name for name in state):
        raise lora_error(path, "holds no LoRA")
    for name, value in state.items():
        _check_kind(path, name, value)
    check_finite(path, state)
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in _to_peft_keys(path, _without_text_encoders(path, state)):
        module, part = _split_key(path, name)
        known = layers.setdefault(module, {}).setdefault(part, value)
        # torch does not compare 8-bit floats
        if known.shape != value.shape or not (known.float() == value.float()).all():
            raise lora_error(path, f"has two different values for {name}")
    if not layers:
        raise lora_error(path, "holds no LoRA of a UNet")
    return {module: _layer_update(path, module, parts) for module, parts in layers.items()}


def _check_kind(path: Path, name: str, value: Tensor) -> None:
    if kind := next((kind for piece, kind in OTHER_KINDS.items() if piece in name), None):
        raise lora_error(path, f"is {kind}, not a plain LoRA: it has the key {name!r}")
    is_alpha = name.endswith(".alpha")
    is_fit = value.numel() == 1 if is_alpha else value.dtype.is_floating_point and value.dim() in (2, 4)
    if not is_fit or value.numel() == 0 or value.is_complex() or len(name) > MAX_KEY_LENGTH:
        raise lora_error(path, f"has {name[:MAX_KEY_LENGTH]!r} with dtype {value.dtype} and shape {tuple(value.shape)}")


def _without_text_encoders(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    for name, value in state.items():
        is_up = name.startswith(TEXT_ENCODERS) and any(half in name for half in UP_KEYS)
        if is_up and value.any():  # an untrained B is zero
            raise lora_error(
                path, f"also changes a text encoder, first by {name!r}; a few-step student changes the UNet"
            )
    return {name: value for name, value in state.items() if not name.startswith(TEXT_ENCODERS)}


def _to_peft_keys(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors under peft's keys, without a prefix; a key can occur twice."""
    import diffusers

    for name, value in _to_diffusers_keys(path, state):
        bare = name.removeprefix(PREFIX).removeprefix(PEFT_WRAPPER).removeprefix(PREFIX)
        yield from diffusers.utils.convert_unet_state_dict_to_peft({bare: value}).items()


def _to_diffusers_keys(path: Path, state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, with kohya's keys replaced by old keys of diffusers."""
    import diffusers

    loader = diffusers.loaders.StableDiffusionXLLoraLoaderMixin
    layers: dict[str, dict[str, Tensor]] = {}
    for name, value in ((re.sub(f"^{LYCORIS_PREFIX}", KOHYA_PREFIX, name), value) for name, value in state.items()):
        if name.startswith(KOHYA_PREFIX):
            layers.setdefault(name.split(".")[0], {})[name] = value
        else:
            yield name, value
    for layer, part in layers.items():  # one at a time: diffusers would silently drop one of two names of a layer
        try:
            weights, alphas = loader.lora_state_dict(part, unet_config=SGM_CONFIG)
        except CONVERSION_ERRORS as error:
            raise lora_error(path, f"has keys for {layer} that diffusers cannot map") from error
        yield from weights.items()
        yield from ((name, torch.tensor(alpha)) for name, alpha in alphas.items())


def _split_key(path: Path, name: str) -> tuple[str, str]:
    """Return the layer of a peft key, and the part of its update: "A", "B" or "alpha"."""
    if name.endswith(".alpha"):
        return name.removesuffix(".alpha").removesuffix(".lora_A.weight"), "alpha"
    if match := PEFT_KEY.fullmatch(name):
        return match[1], match[2]
    raise lora_error(path, f"has the key {name!r}, which no LoRA of a UNet has")


def _layer_update(path: Path, module: str, parts: Mapping[str, Tensor]) -> LayerUpdate:
    if not parts.keys() >= {"A", "B"}:
        raise lora_error(path, f"lacks A or B of {module}")
    down, up = parts["A"], parts["B"]
    is_pair = down.dim() == up.dim() and down.shape[0] == up.shape[1] and set(up.shape[2:]) <= {1}
    if not is_pair:
        shapes = f"{tuple(down.shape)} and {tuple(up.shape)}"
        raise lora_error(path, f"has A and B of {module} in shapes that do not match: {shapes}")
    return LayerUpdate(down, up, float(parts["alpha"]) if "alpha" in parts else None)

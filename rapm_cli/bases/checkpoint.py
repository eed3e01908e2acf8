"""What a checkpoint in the original layout says of itself: family, prediction type, noise schedule; without torch."""

from collections.abc import Collection, Mapping
from itertools import accumulate, chain
from operator import mul
from pathlib import Path
from typing import NamedTuple

from rapm_cli.bases.support import EPSILON, STEPS, V_PREDICTION
from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.header import SUFFIX, Header, TensorInfo, read_header, read_numbers
from rapm_cli.formats.original_layout import (
    CLIP,
    CLIP_XL,
    OPEN_CLIP,
    UNET,
    UNET_PARAMETERS,
    V_TENSOR,
    VAE,
    ZERO_SNR_TENSOR,
    unet_parameters,
)

ENCODERS = {"sdxl": (CLIP_XL, OPEN_CLIP), "sd15": (CLIP,)}
OTHER_FAMILIES = {  # first tensors by which other models are known, to name them
    "cond_stage_model.model.": "a Stable Diffusion 2",
    "conditioner.embedders.0.model.": "the refiner of SDXL",
    f"{UNET}joint_blocks.": "a Stable Diffusion 3",
    f"{UNET}double_blocks.": "a Flux",
}
LATENT_CHANNELS, FIRST_LAYER = 4, f"{UNET}input_blocks.0.0.weight"
GIVE_ANOTHER = "give another base"
# Beginnings and ends of tensor names that say what rapm cannot distil. Source of the first three: ComfyUI, which tells
# Playground v2.5 and CosXL apart by them; of the ends: its 8-bit formats.
REFUSED_STARTS = {
    "edm_mean": "has latents and a noise schedule of its own (EDM, as Playground v2.5)",
    "edm_std": "has latents and a noise schedule of its own (EDM, as Playground v2.5)",
    "edm_vpred.": "has a noise schedule in sigmas (EDM, as CosXL)",
    f"{UNET}time_embed.cond_proj.": "takes the guidance scale as an input (distilled already, as LCM)",
}
REFUSED_ENDS = {
    f".{end}": "has scaled 8-bit weights" for end in ("scaled_fp8", "scale_weight", "weight_scale", "comfy_quant")
}
# Keys of headers that name the prediction type: of sd-scripts and ModelSpec, of ComfyUI, and of others.
PREDICTION_KEYS = ("modelspec.prediction_type", "modelspec.predict_key", "prediction_type")
PREDICTIONS = {  # their values, in lower case with underscores
    **dict.fromkeys(("epsilon", "eps"), EPSILON),
    **dict.fromkeys(("v", "v_pred", "vpred", "v_prediction", "velocity"), V_PREDICTION),
}
UNSAID = ("", "none", "null")
V_KEY, ZERO_KEY = "ss_v_parameterization", "ss_zero_terminal_snr"  # of sd-scripts: "True" or "False"
ALPHAS, SIGMAS = "alphas_cumprod", "denoiser.sigmas"  # schedules that some files store
BETA_START, BETA_END = 0.00085, 0.012  # of both families
TOLERANCE = 0.01  # relative; bfloat16 rounds to 0.004
NO_SIGNAL = 1e-6  # absolute; other programs store the last power of a rescaled schedule as up to 6e-8


class CheckpointKind(NamedTuple):
    """What a checkpoint in the original layout says of itself.

    Args:
        family: Name of its model family.
        prediction_type: "epsilon" or "v_prediction"; None where it names none.
        has_zero_snr: Whether its noise schedule goes down to zero signal.
    """

    family: str
    prediction_type: str | None = None
    has_zero_snr: bool = False


def checkpoint_kind(path: Path) -> CheckpointKind:
    """Return what a checkpoint in the original layout says of itself.

    Raises:
        InputError: The file is no such checkpoint, contradicts itself, or rapm cannot distil it.
    """
    if path.suffix != SUFFIX:
        raise InputError(f"{path} is no safetensors file, and others can run code", "give a .safetensors checkpoint")
    header = read_header(path)
    family = _family(path, header.tensors)
    channels = header.tensors[FIRST_LAYER].shape[1] if FIRST_LAYER in header.tensors else 0
    if channels != LATENT_CHANNELS:
        raise InputError(
            f"{path} takes {channels} channels, not {LATENT_CHANNELS}: it is for inpainting or editing",
            "give a text-to-image model",
        )
    for name in header.tensors:
        if reason := _refusal(name):
            raise InputError(f"{path} {reason}, which rapm cannot distil: it holds {name}", GIVE_ANOTHER)
    _check_size(path, family, header)
    kind = CheckpointKind(family, _prediction_type(path, header), _has_zero_snr(path, header))
    if kind.has_zero_snr and kind.prediction_type != V_PREDICTION:
        raise InputError(
            f"{path} says that its noise schedule goes down to zero signal, and not that it predicts v",
            "give a base that predicts v, and says so in its header",
        )
    return kind


def _family(path: Path, names: Collection[str]) -> str:
    for family, encoders in ENCODERS.items():
        if all(_has(names, start) for start in (UNET, VAE, *encoders)):
            return family
    other = next((f"{kind}, and " for start, kind in OTHER_FAMILIES.items() if _has(names, start)), "")
    raise InputError(
        f"{path} is {other}no checkpoint of a whole Stable Diffusion XL or 1.5", "give one with text encoders and VAE"
    )


def _check_size(path: Path, family: str, header: Header) -> None:
    """Refuse a UNet of other shapes than the published one, whose configuration a single file is read with.

    Raises:
        InputError: The UNet has more or fewer parameters.
    """
    found, published = unet_parameters(header.tensors), UNET_PARAMETERS[family]
    if found != published:
        raise InputError(
            f"{path} has a UNet of {found:,} parameters, not the {published:,} of {family}: it was pruned or has "
            "other shapes",
            "give the model as a folder in diffusers' layout, which says its shapes",
        )


def _has(names: Collection[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)


def _refusal(name: str) -> str:
    """Return why rapm cannot distil a checkpoint with a tensor of this name; empty for nearly every name."""
    starts = (reason for mark, reason in REFUSED_STARTS.items() if name.startswith(mark))
    ends = (reason for mark, reason in REFUSED_ENDS.items() if name.endswith(mark))
    return next(chain(starts, ends), "")


def _prediction_type(path: Path, header: Header) -> str | None:
    """Return what the file says that its network predicts.

    Raises:
        InputError: It names what rapm does not know, or two places contradict each other.
    """
    said = {key: _prediction(path, key, header.metadata[key]) for key in PREDICTION_KEYS if key in header.metadata}
    if V_KEY in header.metadata:
        said[V_KEY] = V_PREDICTION if _is_true(header.metadata, V_KEY) else EPSILON
    if V_TENSOR in header.tensors:
        said[f"the tensor {V_TENSOR}"] = V_PREDICTION
    found = {value: place for place, value in said.items() if value}
    if len(found) > 1:
        words = " and ".join(f"{value} in {place}" for value, place in found.items())
        raise InputError(f"{path} contradicts itself: it says {words}", "take the wrong one out of its header")
    return next(iter(found), None)


def _prediction(path: Path, key: str, value: str) -> str | None:
    word = value.strip().lower().replace("-", "_")
    if word in UNSAID:
        return None
    if word not in PREDICTIONS:
        raise InputError(f"{path} predicts {value!r}, by {key} of its header", "give a base that predicts epsilon or v")
    return PREDICTIONS[word]


def _is_true(metadata: Mapping[str, str], key: str) -> bool:
    return metadata.get(key, "").strip().lower() in ("true", "1")


def _has_zero_snr(path: Path, header: Header) -> bool:
    """Return whether a file says, or stores a noise schedule which shows, that the schedule goes down to zero signal.

    Raises:
        InputError: It stores another noise schedule than those of its family, by more than rounding.
    """
    usual, rescaled = _usual_powers(), _rescaled_powers()
    shown = []
    for name in (ALPHAS, SIGMAS):
        if name in header.tensors:
            stored = _signal_powers(path, name, header.tensors[name])
            shown.append(_is_close(stored, rescaled))
            if not shown[-1] and not _is_close(stored, usual):
                raise InputError(
                    f"{path} stores a noise schedule that is not one of Stable Diffusion, in {name}", GIVE_ANOTHER
                )
    return any(shown) or ZERO_SNR_TENSOR in header.tensors or _is_true(header.metadata, ZERO_KEY)


def _is_close(stored: list[float], expected: list[float]) -> bool:
    return len(stored) == STEPS and all(
        abs(one - other) <= TOLERANCE * other + NO_SIGNAL for one, other in zip(stored, expected, strict=True)
    )


def _usual_powers() -> list[float]:
    """Return the signal powers of both families, whose betas are linear in their square roots."""
    start, end = BETA_START**0.5, BETA_END**0.5
    betas = ((start + (end - start) * k / (STEPS - 1)) ** 2 for k in range(STEPS))
    return list(accumulate((1 - beta for beta in betas), mul))


def _rescaled_powers() -> list[float]:
    """Return the same powers, rescaled so that the last is 0 (arXiv:2305.08891, algorithm 1)."""
    roots = [power**0.5 for power in _usual_powers()]
    return [((root - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2 for root in roots]


def _signal_powers(path: Path, name: str, one: TensorInfo) -> list[float]:
    """Return a stored schedule as falling signal powers; of sigmas, a clean end that some files append is left out."""
    values = read_numbers(path, one) if one.count <= STEPS + 1 else []
    if name == SIGMAS:
        values = sorted((1 / (1 + value * value) for value in values if value > 0), reverse=True)
    return values

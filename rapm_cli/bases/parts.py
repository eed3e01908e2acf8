"""The parts of a base read from its files, each by itself, so that none is in memory before it is needed."""

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import nn

from rapm_cli.bases.families import Family
from rapm_cli.bases.weights import Weights
from rapm_cli.core.errors import InputError
from rapm_cli.core.schedule import NoiseSchedule

T = TypeVar("T")


def load_text(weights: Weights, family: Family, dtype: torch.dtype) -> Any:
    """A diffusers pipeline of the tokenizers and text encoders alone, on the CPU.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(diffusers, family.pipeline)
    absent = dict.fromkeys(("unet", "vae", *family.left_out))
    common = absent | {"dtype": dtype, "local_files_only": True} | family.settings

    def load() -> Any:
        if weights.checkpoint:
            return kind.from_single_file(str(weights.checkpoint), config=str(weights.folder), **common)
        variant = weights.variant("text_encoder")
        return kind.from_pretrained(str(weights.folder), variant=variant, use_safetensors=True, **common)

    return _told(weights, load)


def load_unet(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The network, on the CPU.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers

    return _told(weights, lambda: _diffusers_part(weights, "unet", diffusers.UNet2DConditionModel, dtype))


def load_vae(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """The autoencoder, on the CPU; in float32 where it overflows in half precision, as SDXL's own does.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers

    overflows = weights.config("vae").get("force_upcast", True)
    kept = torch.float32 if overflows else dtype
    return _told(weights, lambda: _diffusers_part(weights, "vae", diffusers.AutoencoderKL, kept))


def load_schedule(weights: Weights) -> NoiseSchedule:
    """The noise schedule that the network was trained with.

    Raises:
        InputError: It is one that rapm does not know.
    """
    config = weights.config("scheduler", "scheduler_config.json")
    predicts = weights.prediction_type or config.get("prediction_type", "epsilon")
    is_known = config.get("beta_schedule") == "scaled_linear" and predicts in ("epsilon", "v_prediction")
    if not is_known or config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr"):
        raise InputError(
            f"{weights.origin} has a noise schedule that rapm does not know: {config.get('beta_schedule')}, {predicts}",
            "give a base with scaled_linear betas, not rescaled, that predicts epsilon or v_prediction",
        )
    return NoiseSchedule.scaled_linear(
        config["beta_start"], config["beta_end"], config.get("num_train_timesteps", 1000), predicts
    )


def _diffusers_part(weights: Weights, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
    folder = str(weights.folder)
    if weights.checkpoint:
        made = kind.from_single_file(
            str(weights.checkpoint), config=folder, subfolder=part, dtype=dtype, local_files_only=True
        )
    else:
        made = kind.from_pretrained(
            folder,
            subfolder=part,
            variant=weights.variant(part),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
        )
    return made.to(dtype).eval()  # type: ignore[no-any-return]  # diffusers keeps some parts of some models in float32


def _told(weights: Weights, load: Callable[[], T]) -> T:
    """What `load` returns; what the libraries say of files that they cannot read becomes an error with a remedy."""
    from safetensors import SafetensorError

    try:
        return load()
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        if type(error).__name__ == "OutOfMemoryError":
            raise
        said = str(error).strip().splitlines()
        reason = said[0][:200].rstrip(".") if said else type(error).__name__
        raise InputError(
            f"{weights.origin} cannot be loaded: {reason}",
            "give a whole Stable Diffusion XL or 1.5 with safetensors weights",
        ) from error

"""Load the parts of a base from its files, each separately, so that only needed parts are in memory."""

import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn

from rapm_cli.bases.families import Family
from rapm_cli.bases.weights import WHOLE, Weights
from rapm_cli.core.common.errors import InputError, is_out_of_memory
from rapm_cli.core.network.schedule import NoiseSchedule

T = TypeVar("T")
STEPS = 1000  # length of the noise schedules that rapm supports
FEWEST_TOKENS = 512  # two for each byte; transformers creates an empty vocabulary if the file is missing


def load_text(weights: Weights, family: Family, dtype: torch.dtype) -> Any:
    """Load a diffusers pipeline of the tokenizers and text encoders alone, on the CPU.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    kind = getattr(diffusers, family.pipeline)
    absent = dict.fromkeys(("unet", "vae", "scheduler", *family.left_out))
    common = absent | {"local_files_only": True} | family.settings

    def load() -> Any:
        if weights.checkpoint:
            return kind.from_single_file(str(weights.checkpoint), config=str(weights.folder), dtype=dtype, **common)
        encoders = {
            part: _from_folder(weights, part, getattr(transformers, name), dtype)
            for part, name in family.encoders.items()
        }
        return kind.from_pretrained(str(weights.folder), **encoders, **common)

    pipeline = _explained(weights, load)
    for part in family.encoders:
        encoder, tokenizer = getattr(pipeline, part), getattr(pipeline, part.replace("text_encoder", "tokenizer"))
        _refuse_missing(weights, part, [name for name, value in encoder.named_parameters() if value.is_meta])
        longest = encoder.config.max_position_embeddings
        if tokenizer.model_max_length != longest or len(tokenizer) < FEWEST_TOKENS:
            raise InputError(f"{weights.origin} lacks the tokenizer of its {part}", WHOLE)
    return pipeline


def load_unet(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Load the UNet, on the CPU.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers

    return _load_model(weights, "unet", diffusers.UNet2DConditionModel, dtype)


def load_vae(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Load the autoencoder, on the CPU; in float32 if it overflows in half precision, as SDXL's own does.

    Raises:
        InputError: The files are not those of such a model.
    """
    import diffusers

    overflows = weights.config("vae").get("force_upcast", True)
    return _load_model(weights, "vae", diffusers.AutoencoderKL, torch.float32 if overflows else dtype)


def load_schedule(weights: Weights) -> NoiseSchedule:
    """Read the noise schedule that the network was trained with.

    Raises:
        InputError: rapm does not support the schedule.
    """
    config = weights.config("scheduler", "scheduler_config.json")
    predicts = weights.prediction_type or config.get("prediction_type", "epsilon")
    is_known = config.get("beta_schedule") == "scaled_linear" and predicts in ("epsilon", "v_prediction")
    is_known = is_known and all(type(config.get(name)) is float for name in ("beta_start", "beta_end"))
    is_rescaled = bool(config.get("rescale_betas_zero_snr"))
    if not is_known or is_rescaled or config.get("trained_betas") is not None:
        about = f"{config.get('beta_schedule')}, {predicts}" + (", rescaled to zero signal" if is_rescaled else "")
        raise InputError(
            f"{weights.origin} has a noise schedule that rapm does not know: {about}",
            "give a base with scaled_linear betas, not rescaled, that predicts epsilon or v_prediction",
        )
    if (length := config.get("num_train_timesteps", STEPS)) != STEPS:
        raise InputError(f"{weights.origin} has a noise schedule of {length} steps", f"give a base with {STEPS}")
    return NoiseSchedule.scaled_linear(config["beta_start"], config["beta_end"], STEPS, predicts)


def _load_model(weights: Weights, part: str, kind: Any, dtype: torch.dtype) -> nn.Module:
    def load() -> Any:
        if weights.checkpoint:
            origin, config = str(weights.checkpoint), str(weights.folder)
            try:
                return kind.from_single_file(origin, config=config, subfolder=part, dtype=dtype, local_files_only=True)
            except NotImplementedError as error:  # diffusers tries to move weights that the file lacks
                raise InputError(f"{origin} lacks weights of its {part}", WHOLE) from error
        return _from_folder(weights, part, kind, dtype)

    made: nn.Module = _explained(weights, load)
    return made.to(dtype).eval()  # diffusers keeps some layers of some models in float32


def _from_folder(weights: Weights, part: str, kind: Any, dtype: torch.dtype) -> Any:
    """Load a part by diffusers or transformers, and refuse weights that these libraries would initialise at random."""
    made, said = kind.from_pretrained(
        str(weights.folder),
        subfolder=part,
        variant=weights.variant(part),
        dtype=dtype,
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    if said["mismatched_keys"]:
        names = [name for name, *_ in said["mismatched_keys"]]
        raise InputError(f"{weights.origin} has a {part} of other shapes than it says, first {min(names)}", WHOLE)
    _refuse_missing(weights, part, said["missing_keys"])
    return made


def _refuse_missing(weights: Weights, part: str, names: Collection[str]) -> None:
    if names:
        raise InputError(f"{weights.origin} lacks weights of its {part}, first {min(names)}", WHOLE)


def _explained(weights: Weights, load: Callable[[], T]) -> T:
    """Call `load`, and turn the libraries' errors about unreadable files into errors with a remedy."""
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    of_libraries = (SafetensorError, SingleFileComponentError)
    try:
        return load()
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, *of_libraries) as error:
        if is_out_of_memory(error):
            raise
        reason = re.split(r"\.\s|\n", str(error).strip())[0][:200].rstrip(".") or type(error).__name__
        raise InputError(f"{weights.origin} cannot be loaded: {reason}", WHOLE) from error

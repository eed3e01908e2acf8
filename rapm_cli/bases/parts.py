"""Load the parts of a base from its files, each separately, so that only needed parts are in memory."""

import re
from collections.abc import Callable, Collection
from typing import Any, TypeVar

import torch
from torch import nn

from rapm_cli.bases.families import Family
from rapm_cli.bases.weights import WHOLE, Weights
from rapm_cli.core.common.errors import InputError, is_out_of_memory
from rapm_cli.formats.original_layout import CLIP_PREFIXES, INSIDE_CLIP, clip_name

T = TypeVar("T")
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
            origin, clip = str(weights.checkpoint), _clip_of_checkpoint(weights, dtype)
            return kind.from_single_file(origin, config=str(weights.folder), dtype=dtype, text_encoder=clip, **common)
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


def _clip_of_checkpoint(weights: Weights, dtype: torch.dtype) -> nn.Module:
    """Load a checkpoint's CLIP, also where its names lack `text_model.`, which diffusers cannot read."""
    from safetensors import safe_open
    from transformers import CLIPTextConfig, CLIPTextModel

    made: nn.Module = CLIPTextModel(CLIPTextConfig.from_pretrained(str(weights.folder / "text_encoder")))
    with safe_open(str(weights.checkpoint), "pt") as file:
        names = {clip_name(name): name for name in file.keys() if name.startswith(CLIP_PREFIXES)}  # noqa: SIM118
        state = {name.rpartition(INSIDE_CLIP)[2]: file.get_tensor(source) for name, source in names.items()}
    layers: nn.Module = getattr(made, "text_model", made)  # transformers 5.6 took this layer away
    _refuse_missing(weights, "text_encoder", layers.load_state_dict(state, strict=False).missing_keys)
    return made.to(dtype).eval()


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

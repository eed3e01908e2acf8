"""Describe a safetensors file from its header: a LoRA under any keys, a whole model, or a part of one.

The only values that are read are a LoRA's alpha tensors, a few bytes each.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapm_cli.formats.header import Header, TensorInfo, read_numbers
from rapm_cli.formats.original_layout import UNET_PARAMETERS, V_TENSOR, unet_parameters
from rapm_cli.formats.programs import OTHER_KINDS, checkpoint_verdicts, key_format, verdicts
from rapm_cli.formats.recipe import (
    ADAPTER_KEY,
    PREFIX,
    is_rapm_lora,
    parse_lora_header,
    parse_recipe,
    with_adapter_config,
)

FACTOR_KEY = re.compile(r"(.+?)[._](?:lora[._])?(?:(A|down)|(B|up))(?:\.[^.]+)?\.weight")
FAMILIES = {2048: "Stable Diffusion XL", 768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}  # by text width
ANOTHER_WIDTH = "a base whose text is"
RAPM = "rapm (--base)"  # among the programs that read a model
TEXT_READER = re.compile(r"attn2[._](processor\.)?to_[kv]")  # a layer whose input is the text
TEXT_ENCODERS = ("text_encoder", "lora_te")
BLOCK_NAME = re.compile(r"(down|up|mid|input|output|middle)_blocks?[._]?(\d+)?")
PROVENANCE = {  # metadata keys of other programs, and the names that rapm shows them under
    "modelspec.title": "title", "modelspec.author": "author", "modelspec.date": "date", "ss_output_name": "alias",
    "modelspec.architecture": "architecture", "modelspec.merged_from": "merged from",
    "modelspec.usage_hint": "usage", "ss_training_comment": "comment", "ss_sd_model_name": "trained on",
}  # fmt: skip
ORIGINAL_UNET = "model.diffusion_model."
ORIGINAL_PARTS = {  # of the original layout, by how their names begin
    "unet": ORIGINAL_UNET, "autoencoder": "first_stage_model.", "CLIP-L": "conditioner.embedders.0.",
    "OpenCLIP": "conditioner.embedders.1.", "CLIP": "cond_stage_model.",
}  # fmt: skip


@dataclass(frozen=True)
class LayerInfo:
    """The header's facts about one layer of a LoRA.

    Args:
        rank: Rank of the update.
        alpha: Alpha of the update, which is (alpha / rank) B A; None where the file does not say it.
        inputs: Number of input features of A.
    """

    rank: int
    alpha: float | None
    inputs: int


def is_lora(names: Collection[str]) -> bool:
    """Return True where tensors of these names are a LoRA of any kind, also one that rapm does not read."""
    return key_format(names) is not None or any(piece in name for name in names for piece in ("lora", "lokr_", "hada_"))


def describe_lora(path: Path, header: Header) -> dict[str, Any]:
    """Return facts about a LoRA, as JSON values.

    Args:
        path: LoRA's file; its alpha tensors are read from there.
        header: Header of that file.

    Raises:
        InputError: The header of a LoRA that rapm wrote contradicts its tensors.
    """
    if is_rapm_lora(header) or _has_peft_settings(header):
        parse_lora_header(path, header)
    layers, names = _layers(path, header), list(header.tensors)
    form = key_format(names)
    ranks, alphas = Counter(one.rank for one in layers.values()), Counter(one.alpha for one in layers.values())
    base = _base_family(layers)
    is_usual = not base.startswith(ANOTHER_WIDTH)
    found = verdicts(names, header.metadata, is_xl=base == FAMILIES[2048], has_usual_shapes=is_usual)
    rank, alpha = next(iter(ranks), None), next(iter(alphas), None)
    is_one = len(ranks) == len(alphas) == 1
    kind = next((kind for piece, kind in OTHER_KINDS.items() if any(piece in name for name in names)), None)
    return {
        "file": str(path),
        "kind": "LoRA",
        "form": form.title if form else f"not plain: {kind or 'unknown keys'}",
        "bytes": header.file_bytes,
        "dtype": "/".join(sorted({one.dtype for name, one in header.tensors.items() if not name.endswith(".alpha")})),
        "rank": rank if len(ranks) == 1 else None,
        "alpha": alpha if len(alphas) == 1 else None,
        "scale": alpha / rank if is_one and rank and alpha is not None else None,
        "ranks": {str(value): count for value, count in sorted(ranks.items())},
        "alphas": {str(value): count for value, count in sorted(alphas.items(), key=str)},
        "modules": len(layers),
        "parameters": sum(one.count for name, one in header.tensors.items() if not name.endswith(".alpha")),
        "blocks": dict(sorted(Counter(map(block_of, layers)).items())),
        "fits": base,
        "programs": [asdict(one) for one in found],
        "recipe": _recipe(header.metadata),
        "said": _provenance(header.metadata),
    }


def describe_model(path: Path, header: Header) -> dict[str, Any]:
    """Return facts about a file that is not a LoRA, as JSON values.

    Args:
        path: Checkpoint in the original layout, part of a model in diffusers' layout, or file of other tensors.
        header: Header of that file.
    """
    names = header.tensors
    sizes = {
        part: _part_facts(header, start)
        for part, start in ORIGINAL_PARTS.items()
        if any(n.startswith(start) for n in names)
    }
    kind, readers = _model_kind(names, sizes)
    facts: dict[str, Any] = {
        "file": str(path),
        "kind": kind,
        "bytes": header.file_bytes,
        "dtype": "/".join(sorted({one.dtype for one in names.values()})),
        "tensors": len(names),
        "parameters": sum(one.count for one in names.values()),
        "parts": sizes,
        "programs": readers,
        "recipe": _recipe(header.metadata),
        "said": _provenance(header.metadata),
    }
    return facts | ({"predicts": "v_prediction"} if V_TENSOR in names else {})


def _model_kind(names: Mapping[str, TensorInfo], parts: Mapping[str, Any]) -> tuple[str, list[str]]:
    if "unet" in parts:
        family = "Stable Diffusion XL" if "OpenCLIP" in parts else "Stable Diffusion 1" if "CLIP" in parts else ""
        if not family or "autoencoder" not in parts:
            return "UNet in the original layout", ["ComfyUI"]
        return f"checkpoint of a whole {family}", _checkpoint_readers(names, is_xl="OpenCLIP" in parts)
    known = {"conv_in.weight": "UNet", "decoder.conv_in.weight": "autoencoder", "z_teacher": "teacher trajectories"}
    for name, kind in known.items():
        if name in names:
            return f"{kind} in diffusers' layout" if kind != "teacher trajectories" else kind, []
    if any("embeddings.token_embedding.weight" in name for name in names):
        return "text encoder in transformers' layout", []
    return "tensors", []


def _checkpoint_readers(names: Mapping[str, TensorInfo], *, is_xl: bool) -> list[str]:
    """Return the programs that read a checkpoint; `rapm` stands for one that its own check has still to judge."""
    is_usual = unet_parameters(names) == UNET_PARAMETERS["sdxl" if is_xl else "sd15"]
    found = checkpoint_verdicts(is_usual, is_xl=is_xl, is_v=V_TENSOR in names, has_workflow=False)
    return [one.program for one in found if not one.reason] + [RAPM]


def _part_facts(header: Header, start: str) -> dict[str, Any]:
    own = [one for name, one in header.tensors.items() if name.startswith(start)]
    return {"parameters": sum(one.count for one in own), "dtype": "/".join(sorted({one.dtype for one in own}))}


def _recipe(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return parse_recipe(metadata)
    except ValueError:
        return {}


def _provenance(metadata: Mapping[str, str]) -> dict[str, str]:
    return {shown: metadata[name] for name, shown in PROVENANCE.items() if metadata.get(name)}


def _has_peft_settings(header: Header) -> bool:
    return ADAPTER_KEY in header.metadata and all(name.startswith(PREFIX) for name in header.tensors)


def _layers(path: Path, header: Header) -> dict[str, LayerInfo]:
    """Return the layers by the names that they have in the file."""
    downs, ups, alphas = {}, set(), {}
    for name, one in header.tensors.items():
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = _read_alpha(path, one)
        elif match := FACTOR_KEY.fullmatch(name):
            if match[2] and len(one.shape) >= 2:
                downs[match[1]] = one
            else:
                ups.add(match[1])
    default = _header_alpha(with_adapter_config(path, header.metadata))
    return {
        name: LayerInfo(one.shape[0], alphas.get(name, default), one.shape[1])
        for name, one in downs.items()
        if name in ups
    }


def _header_alpha(metadata: Mapping[str, str]) -> float | None:
    """Return alpha from peft's settings in the header; None without one, or where layers have alphas of their own."""
    try:
        settings = json.loads(metadata.get(ADAPTER_KEY, "{}"))
        if settings.get(f"{PREFIX}alpha_pattern", settings.get("alpha_pattern")):
            return None
        alpha = settings.get(f"{PREFIX}lora_alpha", settings.get("lora_alpha"))
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _read_alpha(path: Path, one: TensorInfo) -> float | None:
    return next(iter(read_numbers(path, one)), None) if one.count == 1 else None


def _base_family(layers: Mapping[str, LayerInfo]) -> str:
    """Return the model family that the LoRA fits, by the width of the text embedding that its layers read."""
    widths = {one.inputs for name, one in layers.items() if TEXT_READER.search(name)}
    found = {FAMILIES.get(width, f"{ANOTHER_WIDTH} {width} wide") for width in widths}
    if not found:
        return "unknown: no layer that reads the text is changed"
    return found.pop() if len(found) == 1 else "unknown: its layers read texts of several widths"


def block_of(name: str) -> str:
    """Return the block of a layer, such as `down_blocks.1`."""
    if name.startswith(TEXT_ENCODERS):
        return "text encoders"
    match = BLOCK_NAME.search(name)
    if match is None:
        return "outside"
    side = match[1]
    if side in ("mid", "middle"):
        return f"{side}_block"
    return f"{side}_blocks.{match[2]}" if side in ("down", "up") else f"{side}_blocks"

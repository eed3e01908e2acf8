"""What a safetensors file holds: a LoRA in any form, a whole model, or a part of one; from its header alone.

Of the values no more is read than the alphas that a LoRA keeps in tensors, a few bytes each.
"""

import json
import re
import struct
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rapm_cli.formats.header import DTYPE_BYTES, Header, TensorInfo
from rapm_cli.formats.programs import OTHER_KINDS, form_of, verdicts
from rapm_cli.formats.recipe import ADAPTER_KEY, PREFIX, is_of_rapm, lora_facts, recipe_of

HALF = re.compile(r"(.+?)[._](?:lora[._])?(?:(A|down)|(B|up))(?:\.[^.]+)?\.weight")
BASES = {2048: "Stable Diffusion XL", 768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}  # by width of its text
UNPACK = {"F16": "<e", "F32": "<f", "F64": "<d", "I64": "<q", "I32": "<i", "I16": "<h"}
TEXT_ENCODERS = ("text_encoder", "lora_te")
BLOCK = re.compile(r"(down|up|mid|input|output|middle)_blocks?[._]?(\d+)?")
PROVENANCE = {  # what other programs say of a file, by the words that it is shown under
    "modelspec.title": "title", "modelspec.author": "author", "modelspec.date": "date", "ss_output_name": "alias",
    "modelspec.architecture": "architecture", "modelspec.merged_from": "merged from",
    "modelspec.usage_hint": "usage", "ss_training_comment": "comment", "ss_sd_model_name": "trained on",
}  # fmt: skip
ORIGINAL = "model.diffusion_model."
PARTS = {  # of the original layout, by how their names begin
    "unet": ORIGINAL, "autoencoder": "first_stage_model.", "CLIP-L": "conditioner.embedders.0.",
    "OpenCLIP": "conditioner.embedders.1.", "CLIP": "cond_stage_model.",
}  # fmt: skip


@dataclass(frozen=True)
class Layer:
    """What a LoRA says of one layer.

    Args:
        rank: Of its update.
        alpha: The update is (alpha / rank) B A; None where nothing says it.
        inputs: Of A.
    """

    rank: int
    alpha: float | None
    inputs: int


def is_lora(names: Collection[str]) -> bool:
    """Whether a file of these tensors is a LoRA, of whatever kind."""
    return form_of(names) is not None or any(piece in name for name in names for piece in ("lora", "lokr_", "hada_"))


def describe_lora(path: Path, header: Header) -> dict[str, Any]:
    """Facts of a LoRA as JSON values.

    Raises:
        InputError: It is in rapm's own form, and contradicts itself.
    """
    if is_of_rapm(header) or _says_peft(header):
        lora_facts(path, header)
    layers, names = _layers(path, header), list(header.tensors)
    form = form_of(names)
    ranks, alphas = Counter(one.rank for one in layers.values()), Counter(one.alpha for one in layers.values())
    base = _base(layers)
    said = _recipe(header.metadata)
    rank, alpha = next(iter(ranks), None), next(iter(alphas), None)
    is_one = len(ranks) == len(alphas) == 1
    kind = next((kind for piece, kind in OTHER_KINDS.items() if any(piece in name for name in names)), None)
    return {
        "file": str(path),
        "kind": "LoRA",
        "form": form.title if form else f"not plain: {kind or 'keys that nobody knows'}",
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
        "programs": [asdict(one) for one in verdicts(names, header.metadata, is_xl=base == BASES[2048])],
        "recipe": said,
        "said": _said(header.metadata),
    }


def describe_model(path: Path, header: Header) -> dict[str, Any]:
    """Facts of a file that is no LoRA: a whole model in the original layout, a part in diffusers', or just tensors."""
    names = header.tensors
    sizes = {part: _sum(header, start) for part, start in PARTS.items() if any(n.startswith(start) for n in names)}
    kind, readers = _kind(names, sizes)
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
        "said": _said(header.metadata),
    }
    return facts | ({"predicts": "v_prediction"} if "v_pred" in names else {})


def _kind(names: Mapping[str, TensorInfo], parts: Mapping[str, Any]) -> tuple[str, list[str]]:
    readers = ["ComfyUI", "A1111", "diffusers (from_single_file)", "rapm (--base)"]
    if "unet" in parts:
        family = "Stable Diffusion XL" if "OpenCLIP" in parts else "Stable Diffusion 1" if "CLIP" in parts else ""
        is_whole = bool(family) and "autoencoder" in parts
        return (
            (f"checkpoint of a whole {family}", readers) if is_whole else ("UNet in the original layout", ["ComfyUI"])
        )
    known = {"conv_in.weight": "UNet", "decoder.conv_in.weight": "autoencoder", "z_teacher": "teacher trajectories"}
    for name, kind in known.items():
        if name in names:
            return f"{kind} in diffusers' layout" if kind != "teacher trajectories" else kind, []
    if any("embeddings.token_embedding.weight" in name for name in names):
        return "text encoder in transformers' layout", []
    return "tensors", []


def _sum(header: Header, start: str) -> dict[str, Any]:
    own = [one for name, one in header.tensors.items() if name.startswith(start)]
    return {"parameters": sum(one.count for one in own), "dtype": "/".join(sorted({one.dtype for one in own}))}


def _recipe(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        return recipe_of(metadata)
    except ValueError:
        return {}


def _said(metadata: Mapping[str, str]) -> dict[str, str]:
    return {shown: metadata[name] for name, shown in PROVENANCE.items() if metadata.get(name)}


def _says_peft(header: Header) -> bool:
    return ADAPTER_KEY in header.metadata and all(name.startswith(PREFIX) for name in header.tensors)


def _layers(path: Path, header: Header) -> dict[str, Layer]:
    """Layers by the names that the file gives them."""
    downs, ups, alphas = {}, set(), {}
    for name, one in header.tensors.items():
        if name.endswith(".alpha"):
            alphas[name.removesuffix(".alpha")] = _number(path, one)
        elif match := HALF.fullmatch(name):
            if match[2] and len(one.shape) >= 2:
                downs[match[1]] = one
            else:
                ups.add(match[1])
    usual = _header_alpha(header.metadata)
    return {
        name: Layer(one.shape[0], alphas.get(name, usual), one.shape[1]) for name, one in downs.items() if name in ups
    }


def _header_alpha(metadata: Mapping[str, str]) -> float | None:
    """What peft's settings in the header say; None where they say nothing, or more than a number for all."""
    try:
        said = json.loads(metadata.get(ADAPTER_KEY, "{}"))
        if said.get(f"{PREFIX}alpha_pattern", said.get("alpha_pattern")):
            return None
        alpha = said.get(f"{PREFIX}lora_alpha", said.get("lora_alpha"))
        return None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError, RecursionError, OverflowError):
        return None


def _number(path: Path, one: TensorInfo) -> float | None:
    if one.count != 1 or (one.dtype not in UNPACK and one.dtype != "BF16"):
        return None
    with path.open("rb") as file:
        file.seek(one.start)
        data = file.read(DTYPE_BYTES[one.dtype])
    data, form = (b"\0\0" + data, "<f") if one.dtype == "BF16" else (data, UNPACK[one.dtype])
    return float(struct.unpack(form, data)[0])


def _base(layers: Mapping[str, Layer]) -> str:
    """The family of base that it fits, by the width of the text that its layers read."""
    widths = {one.inputs for name, one in layers.items() if re.search(r"attn2[._](processor\.)?to_[kv]", name)}
    found = {BASES.get(width, f"a base whose text is {width} wide") for width in widths}
    return found.pop() if len(found) == 1 else "a UNet whose text it does not touch" if not found else "no one base"


def block_of(name: str) -> str:
    """The block that a layer is in, such as `down_blocks.1`."""
    if name.startswith(TEXT_ENCODERS):
        return "text encoders"
    match = BLOCK.search(name)
    if match is None:
        return "outside"
    side = match[1]
    if side in ("mid", "middle"):
        return f"{side}_block"
    return f"{side}_blocks.{match[2]}" if side in ("down", "up") else f"{side}_blocks"

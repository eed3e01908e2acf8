"""Read the weights of inspected files: norms by block, values that are not finite, and how two LoRAs differ.

Unlike the rest of `rapm inspect`, this needs torch.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.formats.describe import block_of
from rapm_cli.formats.fuse import StoredTensors, open_tensors
from rapm_cli.formats.lora import LoraFile, load_lora
from rapm_cli.formats.safetensors_writer import DTYPES


@dataclass(frozen=True)
class LoraComparison:
    """Two updates of the same layers, each taken as one long vector.

    Args:
        cosine: Cosine of the angle between them; 1 for the same direction.
        relative: |second - first| / |first|.
        only_first: Number of layers that only the first changes.
        only_second: Number of layers that only the second changes.
    """

    cosine: float
    relative: float
    only_first: int
    only_second: int


def add_values(found: list[dict[str, Any]]) -> None:
    """Add facts about the weights to the facts of the headers.

    Args:
        found: Facts of one or two things, from `inspect`. Each gets its norms by block and the number of values that
            are not finite; the first of two LoRAs also gets the comparison.
    """
    loras = [_lora(facts) for facts in found]
    for facts, lora in zip(found, loras, strict=True):
        target = facts["lora"] if facts["kind"] == "run" and facts["lora"] else facts
        if lora:
            target["values"] = {"norms": block_norms(lora), "not_finite": 0}  # load_lora refuses any other
        elif files := _files(facts):
            target["values"] = _file_values(files)
    if len(loras) == 2 and loras[0] and loras[1]:
        found[0]["compared"] = asdict(compare(loras[0], loras[1]))


def block_norms(lora: LoraFile) -> dict[str, float]:
    """Return the Frobenius norm of the update of each block."""
    squares: dict[str, float] = {}
    for module in lora.modules:
        block = block_of(module)
        squares[block] = squares.get(block, 0.0) + _inner_product(lora, lora, module)
    return {block: value**0.5 for block, value in sorted(squares.items())}


def compare(first: LoraFile, second: LoraFile) -> LoraComparison:
    """Compare the updates of two LoRAs."""
    layers, other_layers = set(first.modules), set(second.modules)
    own, other = (sum(_inner_product(lora, lora, module) for module in lora.modules) for lora in (first, second))
    both = sum(_inner_product(first, second, module) for module in layers & other_layers)
    difference = max(0.0, own + other - 2 * both)
    cosine = both / (own * other) ** 0.5 if own and other else float("nan")
    relative = (difference / own) ** 0.5 if own else float("nan")
    return LoraComparison(cosine, relative, len(layers - other_layers), len(other_layers - layers))


def tensor_statistics(tensors: StoredTensors) -> Iterator[tuple[str, float, int]]:
    """Yield the name, the norm and the number of non-finite values of every floating tensor."""
    for name, stored in tensors.items():
        if stored.info.dtype in DTYPES:
            value = stored.read().float()
            bad = int((~value.isfinite()).sum())
            yield name, float(torch.linalg.vector_norm(value[value.isfinite()] if bad else value)), bad


def _lora(facts: dict[str, Any]) -> LoraFile | None:
    facts = facts["lora"] or {} if facts["kind"] == "run" else facts
    return load_lora(Path(facts["file"])) if facts.get("kind") == "LoRA" else None


def _files(facts: dict[str, Any]) -> list[Path]:
    if "file" in facts and facts["kind"] not in ("picture", "pickle"):
        return [Path(facts["file"])]
    return sorted(Path(facts["folder"]).glob("*/*.safetensors")) if "parts" in facts else []


def _file_values(files: list[Path]) -> dict[str, Any]:
    squares: dict[str, float] = {}
    not_finite = 0
    for file in files:
        for name, norm, count in tensor_statistics(open_tensors([file])):
            block = f"{file.parent.name}/{block_of(name)}" if len(files) > 1 else block_of(name)
            squares[block] = squares.get(block, 0.0) + norm**2
            not_finite += count
    return {"norms": {block: value**0.5 for block, value in sorted(squares.items())}, "not_finite": not_finite}


def _inner_product(one: LoraFile, two: LoraFile, module: str) -> float:
    """Return <B1 A1, B2 A2> of a layer as the trace of (B1^T B2)(A2 A1^T), which forms neither product."""
    (down, up), (other_down, other_up) = _factors(one, module), _factors(two, module)
    if (up.shape[0], down.shape[1]) != (other_up.shape[0], other_down.shape[1]):
        return 0.0
    scale = one.alpha / one.rank * two.alpha / two.rank
    return scale * float(((up.t() @ other_up) * (down @ other_down.t())).sum())


def _factors(lora: LoraFile, module: str) -> tuple[Tensor, Tensor]:
    down, up = (lora.state[f"{module}.lora_{half}.weight"].double().flatten(1) for half in "AB")
    return down, up

"""What the numbers of a file say: how large a LoRA's update is and where, how two differ, and what is not finite."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.formats.describe import block_of
from rapm_cli.formats.fuse import Part
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.stream import DTYPES


@dataclass(frozen=True)
class Compared:
    """Two updates of the same layers, taken as one long vector each.

    Args:
        cosine: Of the angle between them; 1 for the same direction.
        relative: |second - first| / |first|.
        only_first: Layers that only the first changes.
        only_second: Layers that only the second does.
    """

    cosine: float
    relative: float
    only_first: int
    only_second: int


def norms(lora: LoraFile) -> dict[str, float]:
    """Frobenius norms of the update by block."""
    squares: dict[str, float] = {}
    for module in lora.modules:
        block = block_of(module)
        squares[block] = squares.get(block, 0.0) + _inner(lora, lora, module)
    return {block: value**0.5 for block, value in sorted(squares.items())}


def compare(first: LoraFile, second: LoraFile) -> Compared:
    """How much two LoRAs do the same."""
    mine, theirs = set(first.modules), set(second.modules)
    own, other = (sum(_inner(lora, lora, module) for module in lora.modules) for lora in (first, second))
    both = sum(_inner(first, second, module) for module in mine & theirs)
    difference = max(0.0, own + other - 2 * both)
    cosine = both / (own * other) ** 0.5 if own and other else float("nan")
    relative = (difference / own) ** 0.5 if own else float("nan")
    return Compared(cosine, relative, len(mine - theirs), len(theirs - mine))


def _inner(one: LoraFile, two: LoraFile, module: str) -> float:
    """<B1 A1, B2 A2> of a layer: the trace of (B1^T B2)(A2 A1^T), for which neither product is formed."""
    (down, up), (other_down, other_up) = _halves(one, module), _halves(two, module)
    if (up.shape[0], down.shape[1]) != (other_up.shape[0], other_down.shape[1]):
        return 0.0
    scale = one.alpha / one.rank * two.alpha / two.rank
    return scale * float(((up.t() @ other_up) * (down @ other_down.t())).sum())


def _halves(lora: LoraFile, module: str) -> tuple[Tensor, Tensor]:
    down, up = (lora.state[f"{module}.lora_{half}.weight"].double().flatten(1) for half in "AB")
    return down, up


def surveyed(part: Part) -> Iterator[tuple[str, float, int]]:
    """Of every tensor of floating point, one by one: its name, its norm, and how many values are not finite."""
    for name, stored in part.items():
        if stored.info.dtype in DTYPES:
            value = stored.read().float()
            bad = int((~value.isfinite()).sum())
            yield name, float(torch.linalg.vector_norm(value[value.isfinite()] if bad else value)), bad

"""Precision, recall, density and coverage: do the pictures lie among the real ones, and the real ones among them?"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEIGHBOURS = 3, 5  # of precision and recall, of density and coverage
ROWS = 1024  # of a matrix of distances that are held at a time


@dataclass(frozen=True)
class Overlap:
    """Shares in [0, 1]; density can be above 1.

    Args:
        precision: Of the pictures, those within reach of a real one.
        recall: Of the real ones, those within reach of a picture.
        density: In how many real ones' reach a picture lies, over what is to be expected.
        coverage: Of the real ones, those with a picture in their reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(pictures: Tensor, real: Tensor, neighbours: tuple[int, int] = NEIGHBOURS) -> Overlap:
    """How two sets of features overlap; it depends on their sizes, which should be the same in what is compared.

    The reach of one is its distance to its k-th neighbour of its own set.

    Args:
        pictures: (N, D) features.
        real: (M, D) features.
        neighbours: k of precision and recall, and of density and coverage.

    Raises:
        ValueError: A set has no more than k rows.

    Source: precision and recall, arXiv:1904.06991, eq. 2; density and coverage, arXiv:2002.09797, eq. 2 and 4.
    """
    x, y = pictures.double(), real.double()
    near, far = neighbours
    if min(len(x), len(y)) <= max(neighbours):
        raise ValueError(f"{len(x)} and {len(y)} rows are too few for {max(neighbours)} neighbours")
    (reach_x,) = _reaches(x, (near,))
    reach_y, wide_reach_y = _reaches(y, (near, far))
    is_among, lies_in, nearest = [], 0, torch.full_like(wide_reach_y, torch.inf)
    is_reached = torch.zeros(len(y), dtype=torch.bool)
    for rows, distances in _distances(x, y):
        is_among.append((distances <= reach_y).any(dim=1))
        is_reached |= (distances <= reach_x[rows, None]).any(dim=0)
        lies_in += int((distances <= wide_reach_y).sum())
        nearest = torch.minimum(nearest, distances.min(dim=0).values)
    return Overlap(
        precision=float(torch.cat(is_among).double().mean()),
        recall=float(is_reached.double().mean()),
        density=lies_in / (far * len(x)),
        coverage=float((nearest <= wide_reach_y).double().mean()),
    )


def _reaches(x: Tensor, neighbours: tuple[int, ...]) -> list[Tensor]:
    """For each k, (N,) distances from each row to its k-th neighbour; a row is not its own."""
    most = max(neighbours) + 1
    nearest = torch.cat([distances.topk(most, largest=False).values for _, distances in _distances(x, x)])
    return [nearest[:, k] for k in neighbours]


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Distances of some rows to all of the other set, with which rows they are."""
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, torch.cdist(x[rows], y)

"""Precision, recall, density and coverage: do samples lie among the reference images, and the reverse?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.metrics.metric import INCEPTION, METRICS, Estimate, Evidence, Metric

NEIGHBOURS = 3, 5  # k for precision and recall, k for density and coverage
ROWS = 1024  # rows of a distance matrix that are held at a time
NAMES = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Overlap:
    """Overlap of samples and reference images: shares in [0, 1]; density can be above 1.

    Args:
        precision: Share of the samples within reach of a reference image.
        recall: Share of the reference images within reach of a sample.
        density: Number of reference images in whose reach a sample lies, divided by k.
        coverage: Share of the reference images with a sample in their reach.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def overlap(samples: Tensor, reference: Tensor, neighbours: tuple[int, int] = NEIGHBOURS) -> Overlap:
    """Return the overlap of two sets of features. It depends on N and M: compare only results with equal sizes.

    The reach of a feature is the distance to its k-th neighbour in its own set.

    Args:
        samples: (N, D) features of samples.
        reference: (M, D) features of reference images.
        neighbours: k for precision and recall, and k for density and coverage.

    Raises:
        ValueError: A set has k rows or fewer.

    Source: precision and recall, arXiv:1904.06991, eq. 2; density and coverage, arXiv:2002.09797, eq. 2 and 4.
    """
    x, y = samples.double(), reference.double()
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
    """Return, for each k, (N,) distances from each row to its k-th neighbour; a row is not its own neighbour."""
    most = max(neighbours) + 1
    nearest = torch.cat([distances.topk(most, largest=False).values for _, distances in _distances(x, x)])
    return [nearest[:, k] for k in neighbours]


def _distances(x: Tensor, y: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Yield a slice of rows of `x` with their distances to all rows of `y`."""
    for start in range(0, len(x), ROWS):
        rows = slice(start, start + ROWS)
        yield rows, torch.cdist(x[rows], y)


def _of_evidence(name: str) -> Callable[[Evidence], Estimate]:
    def compute(evidence: Evidence) -> Estimate:
        reference = evidence.reference[INCEPTION].features
        assert reference is not None
        found = evidence.shared.get("overlap") or overlap(evidence.features[INCEPTION], reference)
        evidence.shared["overlap"] = found
        return Estimate(getattr(found, name))

    return compute


BLIND_TO = {
    "precision": "missing variety",
    "density": "missing variety",
    "recall": "bad images beside good ones",
    "coverage": "bad images beside good ones",
}
for _name in NAMES:
    METRICS.add(_name)(
        Metric(
            _name, True, _of_evidence(_name), INCEPTION, wants_features=True, form=".3f", fewest=max(NEIGHBOURS) + 1,
            blind_to=f"{BLIND_TO[_name]}, and whether an image suits its prompt",
        )
    )  # fmt: skip

"""CMMD: the maximum mean discrepancy of CLIP embeddings with a Gaussian kernel."""

import torch
from torch import Tensor

SIGMA, SCALE = 10.0, 1000.0
ROWS = 2048  # of a kernel matrix that are held at a time


def clip_discrepancy(a: Tensor, b: Tensor) -> float:
    """The biased estimate from (N, D) and (M, D) embeddings, times 1,000; never negative.

    Every row is brought to length 1 first.

    Source: arXiv:2401.09603, section 4, eq. 4 with every term's diagonal, sigma = 10.
    """
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (a, b))
    return SCALE * max(0.0, _mean_likeness(x, x) + _mean_likeness(y, y) - 2 * _mean_likeness(x, y))


def _mean_likeness(x: Tensor, y: Tensor) -> float:
    """Of all pairs of rows of length 1, for which |x - y|^2 = 2 - 2 x.y."""
    sums = [((x[k : k + ROWS] @ y.T - 1) / SIGMA**2).exp().sum() for k in range(0, len(x), ROWS)]
    return float(torch.stack(sums).sum()) / (len(x) * len(y))

"""The kernel distance: squared maximum mean discrepancy with a cubic kernel, unbiased."""

import torch
from torch import Tensor


def kernel_distance(a: Tensor, b: Tensor) -> float:
    """Unbiased estimate from all pairs of (N, D) and (M, D) features; may be slightly negative.

    Source: arXiv:1801.01401, section 4, kernel (x.y / D + 1)^3.
    """
    x, y = a.double(), b.double()
    n, m, width = len(x), len(y), x.shape[1]

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / width + 1) ** 3

    xx, yy, xy = kernel(x, x), kernel(y, y), kernel(x, y)
    within = (xx.sum() - xx.trace()) / (n * (n - 1)) + (yy.sum() - yy.trace()) / (m * (m - 1))
    return float(within - 2 * xy.mean())


def kernel_distance_subsets(a: Tensor, b: Tensor, generator: torch.Generator, subsets: int = 50) -> float:
    """Mean of `kernel_distance` over random subsets of at most 1,000 features, as KID is reported."""
    size = min(1000, len(a), len(b))
    if size == len(a) == len(b):
        return kernel_distance(a, b)
    values = [
        kernel_distance(
            a[torch.randperm(len(a), generator=generator)[:size]], b[torch.randperm(len(b), generator=generator)[:size]]
        )
        for _ in range(subsets)
    ]
    return sum(values) / len(values)

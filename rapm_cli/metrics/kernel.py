"""The kernel distance: squared maximum mean discrepancy with a cubic kernel, unbiased."""

import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 50, 1000  # as KID is reported


def kernel_distance(a: Tensor, b: Tensor, *, are_paired: bool = False) -> float:
    """Unbiased estimate from (N, D) and (M, D) features; may be slightly negative.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        are_paired: Row i of both shows the same scene: such pairs are alike and are left out, else the estimate
            is too low.

    Source: arXiv:1801.01401, section 4, kernel (x.y / D + 1)^3; paired: JMLR 13 (2012) 723, lemma 6, eq. 4.
    """
    x, y = a.double(), b.double()
    n, m, width = len(x), len(y), x.shape[1]

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / width + 1) ** 3

    def mean_without_diagonal(k: Tensor) -> Tensor:
        return (k.sum() - k.trace()) / (len(k) * (len(k) - 1))

    xy = kernel(x, y)
    between = mean_without_diagonal(xy) if are_paired else xy.sum() / (n * m)
    return float(mean_without_diagonal(kernel(x, x)) + mean_without_diagonal(kernel(y, y)) - 2 * between)


def paired_kernel_distance(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """`kernel_distance` of (N, D) paired features; of more than 1,000, the mean over 50 random subsets of as many."""
    if len(a) <= SUBSET_SIZE:
        return kernel_distance(a, b, are_paired=True)
    chosen = [torch.randperm(len(a), generator=generator)[:SUBSET_SIZE] for _ in range(SUBSETS)]
    return sum(kernel_distance(a[rows], b[rows], are_paired=True) for rows in chosen) / SUBSETS

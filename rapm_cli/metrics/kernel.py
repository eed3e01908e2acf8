"""The kernel distance: squared maximum mean discrepancy with a cubic kernel, unbiased."""

import torch
from torch import Tensor

SUBSETS, SUBSET_SIZE = 50, 1000  # of a paired distance
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # as KID is reported
ERROR_ROWS = 5000  # of each set that tell the standard error
ROWS = 2048  # of a kernel matrix that are held at a time


def kernel_distance(a: Tensor, b: Tensor, *, are_paired: bool = False) -> float:
    """Unbiased estimate from (N, D) and (M, D) features; may be slightly negative.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        are_paired: Row i of both shows the same scene: such pairs are alike and are left out, else the estimate
            is too low.

    Source: arXiv:1801.01401, section 4, kernel (x.y / D + 1)^3; paired: JMLR 13 (2012) 723, lemma 6, eq. 4.
    """
    within_a, between = _row_means(a, a, without_own=True), _row_means(a, b, without_own=are_paired)
    return float(within_a.mean() + _row_means(b, b, without_own=True).mean() - 2 * between.mean())


def paired_kernel_distance(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """`kernel_distance` of (N, D) paired features; of more than 1,000, the mean over 50 random subsets of as many."""
    if len(a) <= SUBSET_SIZE:
        return kernel_distance(a, b, are_paired=True)
    chosen = [torch.randperm(len(a), generator=generator)[:SUBSET_SIZE] for _ in range(SUBSETS)]
    return sum(kernel_distance(a[rows], b[rows], are_paired=True) for rows in chosen) / SUBSETS


def subset_distances(
    a: Tensor, b: Tensor, generator: torch.Generator, *, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE
) -> Tensor:
    """(subsets,) kernel distances of random subsets, whose mean is KID.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        generator: CPU generator that draws the subsets, without repetition in one.
        subsets: How many.
        size: Rows of each; all of the smaller set where it has fewer.
    """
    size = min(size, len(a), len(b))

    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]]

    return torch.tensor([kernel_distance(some(a), some(b)) for _ in range(subsets)], dtype=torch.float64)


def distance_error(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """The standard error of `kernel_distance`, from what each row adds to it; needs no resampling.

    The estimate's variance is to first order 4 Var(h_a) / N + 4 Var(h_b) / M, where h is a row's mean likeness to its
    own set less that to the other; of more than 5,000 rows, some drawn by lot tell the variances of h.

    Args:
        a: (N, D) features.
        b: (M, D) features, independent of `a`.
        generator: CPU generator that draws the rows.

    Source: Serfling, Approximation Theorems of Mathematical Statistics, 1980, section 5.5.1, theorem A.
    """
    x, y = (rows[torch.randperm(len(rows), generator=generator)[:ERROR_ROWS]] for rows in (a, b))
    h_x = _row_means(x, x, without_own=True) - _row_means(x, y)
    h_y = _row_means(y, y, without_own=True) - _row_means(y, x)
    return float((4 * h_x.var() / len(a) + 4 * h_y.var() / len(b)).sqrt())


def _row_means(a: Tensor, b: Tensor, *, without_own: bool = False) -> Tensor:
    """(N,) mean kernel of each row of `a` with all of `b`, or with all but the one of its own number."""
    x, y, width = a.double(), b.double(), a.shape[1]
    means = []
    for start in range(0, len(x), ROWS):
        kernel = (x[start : start + ROWS] @ y.T / width + 1) ** 3
        if without_own:
            means.append((kernel.sum(dim=1) - kernel.diagonal(start)) / (len(y) - 1))
        else:
            means.append(kernel.mean(dim=1))
    return torch.cat(means)

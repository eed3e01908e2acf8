"""The kernel distance, squared maximum mean discrepancy with a cubic kernel, unbiased: KID and KD-demo."""

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.metrics.bootstrap import NORMAL_95
from rapm_cli.metrics.metric import (
    INCEPTION,
    METRICS,
    Bootstrap,
    Estimate,
    Evidence,
    LabelledSamples,
    Metric,
    add_labelled_metric,
)

SUBSETS, SUBSET_SIZE = 50, 1000  # for a paired distance
KID_SUBSETS, KID_SUBSET_SIZE = 100, 1000  # as KID is reported
ERROR_ROWS = 5000  # rows of each set that the standard error is computed from
ROWS = 2048  # rows of a kernel matrix that are held at a time


def kernel_distance(a: Tensor, b: Tensor, *, are_paired: bool = False) -> float:
    """Return the unbiased estimate from (N, D) and (M, D) features; it may be slightly negative.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        are_paired: Whether row i of both sets shows the same scene. Such pairs are left out: they are alike and
            would make the estimate too low.

    Source: arXiv:1801.01401, section 4, kernel (x.y / D + 1)^3; paired: JMLR 13 (2012) 723, lemma 6, eq. 4.
    """
    within_a, between = _row_means(a, a, without_own=True), _row_means(a, b, without_own=are_paired)
    return float(within_a.mean() + _row_means(b, b, without_own=True).mean() - 2 * between.mean())


def paired_kernel_distance(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Return `kernel_distance` of (N, D) paired features; above 1,000 rows, the mean of 50 random subsets of 1,000."""
    if len(a) <= SUBSET_SIZE:
        return kernel_distance(a, b, are_paired=True)
    chosen = [torch.randperm(len(a), generator=generator)[:SUBSET_SIZE] for _ in range(SUBSETS)]
    return sum(kernel_distance(a[rows], b[rows], are_paired=True) for rows in chosen) / SUBSETS


def subset_distances(
    a: Tensor, b: Tensor, generator: torch.Generator, *, subsets: int = KID_SUBSETS, size: int = KID_SUBSET_SIZE
) -> Tensor:
    """Return (subsets,) kernel distances of random subsets; their mean is KID.

    Args:
        a: (N, D) features.
        b: (M, D) features.
        generator: CPU generator that draws the subsets; a subset has no row twice.
        subsets: Number of subsets.
        size: Rows of a subset; at most the size of the smaller set.
    """
    size = min(size, len(a), len(b))

    def some(rows: Tensor) -> Tensor:
        return rows[torch.randperm(len(rows), generator=generator)[:size]]

    return torch.tensor([kernel_distance(some(a), some(b)) for _ in range(subsets)], dtype=torch.float64)


def distance_error(a: Tensor, b: Tensor, generator: torch.Generator) -> float:
    """Return the standard error of `kernel_distance`, computed from the contribution of each row without resampling.

    To first order, the variance of the estimate is 4 Var(h_a) / N + 4 Var(h_b) / M. Here h is the mean kernel of a row
    with its own set less that with the other set. Above 5,000 rows, 5,000 random rows give the variances of h.

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
    """Return (N,) mean kernels of each row of `a` with all rows of `b`, or with all but the row of the same number."""
    x, y, width = a.double(), b.double(), a.shape[1]
    means = []
    for start in range(0, len(x), ROWS):
        kernel = (x[start : start + ROWS] @ y.T / width + 1) ** 3
        if without_own:
            means.append((kernel.sum(dim=1) - kernel.diagonal(start)) / (len(y) - 1))
        else:
            means.append(kernel.mean(dim=1))
    return torch.cat(means)


def _kid(evidence: Evidence) -> Estimate:
    """Return mean and spread of subsets, as KID is published; all images at once if they are no more than a subset."""
    ours, reference = evidence.features[INCEPTION], evidence.reference[INCEPTION].features
    assert reference is not None
    margin = NORMAL_95 * distance_error(ours, reference, generator_for("KID rows"))
    if min(len(ours), len(reference)) <= KID_SUBSET_SIZE:
        value, spread = kernel_distance(ours, reference), None
    else:
        subsets = subset_distances(ours, reference, generator_for("KID subsets"))
        value, spread = float(subsets.mean()), float(subsets.std())
    return Estimate(value, value - margin, value + margin, spread)


def _demo(samples: LabelledSamples) -> float:
    return paired_kernel_distance(samples.features, samples.reference, generator_for("kernel distance subsets"))


add_labelled_metric(
    "kd-demo", "KD-demo", False, Bootstrap(_demo, draws=50), is_usual=False, sees=(),
    blind_to="blur and noise, which its reader was trained to overlook, nor whether an image suits its prompt",
)  # fmt: skip
METRICS.add("kid")(
    Metric(
        "KID", False, _kid, INCEPTION, wants_features=True, is_usual=True, form=".5f", fewest=2,
        blind_to="whether an image suits its prompt, and a single bad image",
    )
)  # fmt: skip

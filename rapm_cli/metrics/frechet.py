"""The Fréchet distance between two Gaussians fitted to features, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of a set of features, float64, and how many there were."""

    mean: Tensor
    covariance: Tensor
    count: int


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of (N, D) features, N at least 2.

    Raises:
        ValueError: There are fewer than two, or one is not finite.
    """
    if len(features) < 2 or not torch.isfinite(features).all():
        raise ValueError("moments need at least two finite features")
    x = features.double()
    mean = x.mean(dim=0)
    centred = x - mean
    return Moments(mean, centred.T @ centred / (len(x) - 1), len(x))


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), never negative.

    The trace of the root is that of a symmetric matrix: with S_a = R R^T it is the sum of the square roots of
    the eigenvalues of R^T S_b R, which are real, so no complex arithmetic and no matrix square root is needed.

    Source: arXiv:1706.08500, section 3.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * values.clamp(min=0).sqrt()
    cross = torch.linalg.eigvalsh(root.T @ b.covariance @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))

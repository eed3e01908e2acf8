"""The Fréchet distance between two Gaussians fitted to features, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

ROUNDING = 1e-5  # of the largest value, by which a covariance may be askew or an eigenvalue negative

ROWS = 4096  # that are held in float64 at a time


@dataclass(frozen=True)
class Moments:
    """Mean (D,) and covariance (D, D) of a set of features, float64, and how many there were."""

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def is_singular(self) -> bool:
        """Whether there were too few features for a covariance of full rank."""
        return self.count <= len(self.mean)


class RunningMoments:
    """Moments of features that come in parts, in memory that does not grow with their number.

    Every part is centred on its own mean before it is squared, so that nothing cancels.

    Source: Chan, Golub and LeVeque, The American Statistician 37 (1983) 242, eq. 2.1.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Take in (N, D) more.

        Raises:
            ValueError: One is not finite.
        """
        if not torch.isfinite(features).all():
            raise ValueError("moments need finite features")
        if not len(features):
            return
        x = features.double().cpu()
        mean, total = x.mean(dim=0), self.count + len(x)
        centred, shift = x - mean, mean - self._mean
        self._scatter += centred.T @ centred + torch.outer(shift, shift) * (self.count * len(x) / total)
        self._mean += shift * (len(x) / total)
        self.count = total

    def result(self) -> Moments:
        """Mean and unbiased covariance of all.

        Raises:
            ValueError: There are fewer than two.
        """
        if self.count < 2:
            raise ValueError("moments need at least two features")
        scatter = (self._scatter + self._scatter.T) / 2  # alike on both sides to the last bit
        return Moments(self._mean.clone(), scatter / (self.count - 1), self.count)


def moments(features: Tensor) -> Moments:
    """Mean and unbiased covariance of (N, D) features.

    Raises:
        ValueError: There are fewer than two, or one is not finite.
    """
    running = RunningMoments(features.shape[1])
    for rows in features.split(ROWS):
        running.add(rows)
    return running.result()


def frechet_distance(a: Moments, b: Moments) -> float:
    """|mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), never negative.

    The trace of the root is that of a symmetric matrix: with S_a = R R^T it is the sum of the square roots of
    the eigenvalues of R^T S_b R, which are real, so no complex arithmetic and no matrix square root is needed.

    Raises:
        ValueError: One is not a covariance: not symmetric, or with a negative eigenvalue that is not of rounding.

    Source: arXiv:1706.08500, section 3.
    """
    for side in (a, b):
        skew = (side.covariance - side.covariance.T).abs().max()
        if skew > ROUNDING * side.covariance.abs().max():
            raise ValueError("a covariance that is not symmetric")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * _without_negative(values).sqrt()
    cross = _without_negative(torch.linalg.eigvalsh(root.T @ b.covariance @ root)).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def _without_negative(values: Tensor) -> Tensor:
    if values.min() < -ROUNDING * values.max().clamp(min=1e-300):
        raise ValueError(f"a covariance with the negative eigenvalue {float(values.min()):.3g}")
    return values.clamp(min=0)

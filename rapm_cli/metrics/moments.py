"""Mean and covariance of features, whole or in parts, in float64."""

from dataclasses import dataclass

import torch
from torch import Tensor

ROWS = 4096  # features that are held in float64 at a time


@dataclass(frozen=True)
class Moments:
    """Mean and covariance of a set of features.

    Args:
        mean: (D,) float64.
        covariance: (D, D) float64, unbiased.
        count: Number of features; 0 if unknown.
    """

    mean: Tensor
    covariance: Tensor
    count: int

    @property
    def is_singular(self) -> bool:
        """Whether there were too few features for a covariance of full rank."""
        return self.count <= len(self.mean)


class RunningMoments:
    """Moments of features that arrive in parts; memory does not grow with their number.

    Each part is centred on its own mean before it is squared, so that nothing cancels.

    Args:
        width: D, the number of values in one feature.

    Source: Chan, Golub and LeVeque, The American Statistician 37 (1983) 242, eq. 2.1.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self._mean = torch.zeros(width, dtype=torch.float64)
        self._scatter = torch.zeros(width, width, dtype=torch.float64)

    def add(self, features: Tensor) -> None:
        """Add (N, D) features.

        Raises:
            ValueError: A value is not finite.
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
        """Return mean and unbiased covariance of all features so far.

        Raises:
            ValueError: There are fewer than two features.
        """
        if self.count < 2:
            raise ValueError("moments need at least two features")
        scatter = (self._scatter + self._scatter.T) / 2  # symmetric to the last bit
        return Moments(self._mean.clone(), scatter / (self.count - 1), self.count)


def moments(features: Tensor) -> Moments:
    """Return mean and unbiased covariance of (N, D) features.

    Raises:
        ValueError: There are fewer than two features, or a value is not finite.
    """
    running = RunningMoments(features.shape[1])
    for rows in features.split(ROWS):
        running.add(rows)
    return running.result()

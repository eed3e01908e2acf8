"""The demo metrics by name; each says which direction is better."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.metrics.frechet import frechet_distance, moments
from rapm_cli.metrics.kernel import paired_kernel_distance


@dataclass(frozen=True)
class Readings:
    """What the reader sees in N pictures, and what their prompts ask for.

    Args:
        features: (N, D) float32 features of the pictures.
        right: (N, A) bool, True where an attribute of the prompt is found in the picture.
        asked: (N, A) bool, True where the prompt asks for that attribute.
        reference: (N, D) float32 features of drawn pictures of the same prompts.
    """

    features: Tensor
    right: Tensor
    asked: Tensor
    reference: Tensor

    def __getitem__(self, rows: Tensor) -> "Readings":
        return Readings(self.features[rows], self.right[rows], self.asked[rows], self.reference[rows])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Metric:
    """A number from readings.

    Args:
        title: As in tables.
        is_higher_better: Which direction is better.
        compute: Readings to the number.
        unit: "%" for shares, which are computed in [0, 1].
        least: No value is below it.
        most: No value is above it.
        draws: Bootstrap resamples that its interval takes.
    """

    title: str
    is_higher_better: bool
    compute: Callable[[Readings], float]
    unit: str = ""
    least: float = -math.inf
    most: float = math.inf
    draws: int = 200


METRICS: Registry[Metric] = Registry("metric")


def _attributes(readings: Readings) -> float:
    return float(readings.right[readings.asked].float().mean())


def _pictures(readings: Readings) -> float:
    return float((readings.right | ~readings.asked).all(dim=1).float().mean())


def _frechet(readings: Readings) -> float:
    return frechet_distance(moments(readings.features), moments(readings.reference))


def _kernel(readings: Readings) -> float:
    return paired_kernel_distance(readings.features, readings.reference, generator_for("kernel distance subsets"))


METRICS.add("attributes")(Metric("attributes right", True, _attributes, "%", least=0, most=1))
METRICS.add("pictures")(Metric("pictures all right", True, _pictures, "%", least=0, most=1))
METRICS.add("fd-demo")(Metric("FD-demo", False, _frechet, least=0))
METRICS.add("kd-demo")(Metric("KD-demo", False, _kernel, draws=50))

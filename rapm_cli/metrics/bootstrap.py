"""Intervals by resampling the prompts."""

from collections.abc import Callable

import torch
from torch import Tensor

NORMAL_95 = 1.959963984540054  # half the width of a 95 % interval, in standard errors


def bootstrap_interval(
    statistic: Callable[[Tensor], float], count: int, generator: torch.Generator, *, draws: int = 200
) -> tuple[float, float]:
    """Return the middle 95 % of a statistic over resampled rows, shifted so that its mean is the statistic itself.

    A resample repeats rows, which biases distances between distributions upward. The shift removes that bias.

    Args:
        statistic: (count,) row indices to a number.
        count: Number of rows.
        generator: CPU generator that draws the rows.
        draws: Number of resamples.

    Source: the percentile interval, with the bootstrap estimate of bias removed; Efron and Tibshirani, An Introduction
    to the Bootstrap, 1993, chapters 13 and 10.
    """
    values = torch.tensor([statistic(torch.randint(count, (count,), generator=generator)) for _ in range(draws)])
    shift = statistic(torch.arange(count)) - values.double().mean()
    bounds = torch.quantile(values.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)) + shift
    return float(bounds[0]), float(bounds[1])

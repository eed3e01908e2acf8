"""Intervals by resampling the prompts."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")

QUANTILES = torch.tensor([0.025, 0.975], dtype=torch.float64)  # the ends of a 95 % interval
NORMAL_95 = 1.959963984540054  # half the width of a 95 % interval, in standard errors


def resampled(
    statistic: Callable[[Tensor], T], count: int, generator: torch.Generator, draws: int
) -> tuple[T, list[T]]:
    """Return a statistic of all rows, and of `draws` resamples; it may be one number or one for each model and seed.

    Args:
        statistic: (count,) row indices to the statistic.
        count: Number of rows.
        generator: CPU generator that draws the rows.
        draws: Number of resamples.
    """
    values = [statistic(torch.randint(count, (count,), generator=generator)) for _ in range(draws)]
    return statistic(torch.arange(count)), values


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
    exact, found = resampled(statistic, count, generator, draws)
    values = torch.tensor(found).double()  # through float32, to the last bit as in earlier records
    shift = exact - values.mean()
    bounds = torch.quantile(values, QUANTILES) + shift
    return float(bounds[0]), float(bounds[1])

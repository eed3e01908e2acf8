"""Two models on the same prompts and noise: is one better, or was it chance?"""

from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.metrics.bootstrap import bootstrap_interval

FLIPS = 10_000


@dataclass(frozen=True)
class Difference:
    """Difference between two models, the first less the second, prompt by prompt.

    Args:
        mean: Mean of the differences.
        low: Lower end of the mean's 95 % interval over other prompts.
        high: Upper end of that interval.
        first: Number of prompts where the first model has the higher value.
        second: Number of prompts where the second model has the higher value.
        p_value: Probability of a mean this far from zero if the two models were alike.
        p_sign: Two-sided p-value of the sign test, which no single prompt can sway.
    """

    mean: float
    low: float
    high: float
    first: int
    second: int
    p_value: float
    p_sign: float


def paired_difference(a: Tensor, b: Tensor, generator: torch.Generator) -> Difference:
    """Compare (N,) values of two models for the same prompts.

    Args:
        a: (N,) values of the first model.
        b: (N,) values of the second model.
        generator: CPU generator that draws signs and resamples.

    Source: random sign flips, Fisher, The Design of Experiments, 1935, section 21, with the correction of Phipson and
    Smyth, arXiv:1603.05766.
    """
    differences = (a - b).double()
    count, mean = len(differences), float(differences.mean())
    low, high = bootstrap_interval(lambda rows: float(differences[rows].mean()), count, generator, draws=1000)
    first, second = int((differences > 0).sum()), int((differences < 0).sum())
    p_value = _share_as_far(differences, generator)
    return Difference(mean, low, high, first, second, p_value, sign_test(first, second))


def sign_test(first: int, second: int) -> float:
    """Return the p-value of the exact two-sided sign test, in (0, 1].

    Args:
        first: Number of prompts where the first model is higher.
        second: Number of prompts where the second model is higher; ties count for neither.

    Source: the binomial test with probability 1/2; Conover, Practical Nonparametric Statistics, 1999, section 3.4.
    """
    count, ways, total = first + second, 1, 0  # number of ways to have k of the rarer, and their sum
    for k in range(min(first, second) + 1):
        total += ways
        ways = ways * (count - k) // (k + 1)
    return float(min(1.0, 2 * total / 2**count))


def _share_as_far(differences: Tensor, generator: torch.Generator) -> float:
    """Return the share of random sign flips whose sum is at least as far from zero."""
    as_far, rows, observed = 0, max(1, 2**22 // len(differences)), abs(float(differences.sum())) * (1 - 1e-12)
    for start in range(0, FLIPS, rows):
        shape = (min(rows, FLIPS - start), len(differences))
        signs = torch.randint(2, shape, generator=generator, dtype=torch.int8).double() * 2 - 1
        as_far += int(((signs @ differences).abs() >= observed).sum())
    return (1 + as_far) / (1 + FLIPS)

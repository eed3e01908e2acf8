"""Told apart: how often a learner that saw half of the prompts tells a model's images of the other half from others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rapm_cli.metrics.bootstrap import NORMAL_95
from rapm_cli.metrics.metric import (
    BLUR,
    CAST,
    COMPRESSION,
    FILTERS,
    METRICS,
    NOISE,
    Estimate,
    Evidence,
    Metric,
)

RIDGE = 0.03  # added to the variance of features of variance 1, so that few images give a stable direction
FEWEST = 8  # prompts


def halves(prompts: Sequence[str]) -> Tensor:
    """Return (K,) bool, True for every second prompt; equal prompts are in the same half."""
    numbers: dict[str, int] = {}
    return torch.tensor([numbers.setdefault(prompt, len(numbers)) % 2 == 1 for prompt in prompts], dtype=torch.bool)


def told_apart(a: Tensor, b: Tensor, is_second: Tensor) -> Tensor:
    """Learn from one half of the prompts which set an image is from, ask about the other half, and the reverse.

    Args:
        a: (K, D) features of one set.
        b: (K, D) features of the other set, for the same prompts.
        is_second: (K,) bool, the half that each prompt belongs to.

    Returns:
        (K,) share of right answers on the two images of a prompt: 0, 0.5 or 1. A tie counts as half an answer.
    """
    right = torch.empty(len(a), dtype=torch.float64)
    for asked in (is_second, ~is_second):
        direction, middle = discriminant(a[~asked], b[~asked])
        scores = torch.stack([middle - a[asked].double() @ direction, b[asked].double() @ direction - middle])
        right[asked] = ((scores.sign() + 1) / 2).mean(dim=0)
    return right


def discriminant(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return a direction (D,) and the threshold on it above which an image is taken for one of `b`.

    Args:
        a: (N, D) features of one set.
        b: (N, D) features of the other.

    Source: Fisher's linear discriminant with a ridge on standardised features; Friedman, JASA 84 (1989) 165, eq. 18.
    """
    a, b = a.double(), b.double()
    scale = torch.cat([a, b]).std(dim=0).clamp(min=1e-9)
    mean_a, mean_b = a.mean(dim=0), b.mean(dim=0)
    within = torch.cat([a - mean_a, b - mean_b]) / scale
    covariance = within.T @ within / len(within)
    covariance.diagonal().add_(RIDGE)
    direction = torch.linalg.solve(covariance, (mean_b - mean_a) / scale) / scale
    return direction, (mean_a + mean_b) @ direction / 2


def wilson(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `count` trials.

    Source: Wilson, JASA 22 (1927) 209.
    """
    z2 = NORMAL_95**2 / count
    middle, margin = share + z2 / 2, NORMAL_95 * (share * (1 - share) / count + z2 / (4 * count)) ** 0.5
    return (middle - margin) / (1 + z2), (middle + margin) / (1 + z2)


def _estimate(evidence: Evidence, others: Tensor) -> Estimate:
    """Return the share of right answers; a prompt is one trial, whose two answers may depend on each other."""
    own = evidence.features[FILTERS]
    count = min(len(own), len(others))
    right = told_apart(own[:count], others[:count], halves(evidence.prompts[:count]))
    share = float(right.mean())
    return Estimate(share, *wilson(share, count), by_prompt=right)


def _from_teacher(evidence: Evidence) -> Estimate:
    return _estimate(evidence, evidence.teacher_features[FILTERS])


def _from_true(evidence: Evidence) -> Estimate:
    return _estimate(evidence, evidence.true_features[FILTERS])


BLIND_TO = "which images are better, nor whether they suit their prompts; few prompts teach the judge little"
METRICS.add("told-apart")(
    Metric(
        "told apart", False, _from_teacher, FILTERS, wants_teacher=True, is_usual=True, form=".1f", unit="%",
        fewest=FEWEST, sees=(BLUR, NOISE, COMPRESSION, CAST), blind_to=BLIND_TO,
    )
)  # fmt: skip
METRICS.add("told-true")(
    Metric(
        "told from true images", False, _from_true, FILTERS, wants_true=True, form=".1f", unit="%", fewest=FEWEST,
        sees=(BLUR, NOISE, COMPRESSION, CAST), blind_to=BLIND_TO,
    )
)  # fmt: skip

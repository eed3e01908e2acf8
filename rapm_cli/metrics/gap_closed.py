"""Gap closed: the share of the Fréchet distance between base and teacher that a student closes."""

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.metrics import bootstrap_of
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.metric import Estimate, LabelledSamples

DISTANCE = "fd-demo"
FEWEST_SAMPLES = 640  # ten for each of the reader's features; a Fréchet distance of fewer means nothing


def gap(teacher: float, base: float, student: float) -> float:
    """Return (base - student) / (base - teacher), the share of the distance from base to teacher that is closed."""
    return (base - student) / (base - teacher)


def gap_closed(teacher: LabelledSamples, base: LabelledSamples, student: LabelledSamples) -> Estimate | None:
    """Return the `gap` in Fréchet distances: 1 if the student's distance is its teacher's.

    The interval resamples the prompts of all three models together.

    Args:
        teacher: Samples of the teacher.
        base: Samples of the undistilled base, for the same N prompts.
        student: Samples of the student, for the same N prompts.

    Returns:
        The share; None if N is below `FEWEST_SAMPLES`, or if base and teacher have the same distance.
    """
    count, distance = len(teacher), bootstrap_of(DISTANCE)
    if count < FEWEST_SAMPLES or distance.statistic(base) == distance.statistic(teacher):
        return None

    def share(rows: Tensor) -> float:
        return gap(*(distance.statistic(samples[rows]) for samples in (teacher, base, student)))

    low, high = bootstrap_interval(share, count, generator_for("bootstrap", "closed"), draws=distance.draws)
    return Estimate(share(torch.arange(count)), low, high)

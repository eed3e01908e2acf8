"""Scores of a study's rows over their seeds: means, spreads, and intervals that know of prompts and of seeds."""

import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.evaluate.demo_scores import MIN_FRECHET
from rapm_cli.metrics.registry import METRICS, Readings

SHARES, DISTANCE = ("attributes", "pictures"), "fd-demo"
CLOSED, DIFFERENCE = "closed", "difference"
Values = list[list[float]]  # of each contestant, of each of its seeds
T_DRAWS = 20_000


@dataclass(frozen=True)
class Estimate:
    """One metric of one row.

    Args:
        mean: Over the seeds.
        spread: Standard deviation over the seeds; None for one seed.
        low: Of the 95 % interval of the mean.
        high: Of the same.
        values: Of each seed.
    """

    mean: float
    spread: float | None
    low: float
    high: float
    values: list[float]


def scores(teacher: Readings, base: Readings, rows: list[list[Readings]]) -> list[dict[str, Estimate]]:
    """Estimates by metric, for the teacher, the base and every row.

    `CLOSED` is (FD_base - FD_row) / (FD_base - FD_teacher), and `DIFFERENCE` what a row closes more than the first;
    both are missing where there are too few pictures or nothing to close, and for teacher and base.

    The interval of a mean adds two errors: that of the prompts, by a bootstrap whose resamples are the same for
    everybody, and that of S seeds, their spread over sqrt(S) times a Student's t of S - 1 degrees of freedom. For
    `DIFFERENCE` the spread is that of the seeds' own differences, as rows share trajectories and first weights where
    the seed is the same.

    Args:
        teacher: Readings of its pictures.
        base: The same of the bare base.
        rows: The same of each row, for each of its seeds; empty where a row has none.
    """
    contestants = [[teacher], [base], *(row for row in rows if row)]
    found: list[dict[str, Estimate]] = [{} for _ in contestants]
    for name in SHARES:
        for scored, estimate in zip(found, _share(contestants, name), strict=True):
            scored[name] = estimate
    exact, draws = _resampled(contestants, DISTANCE, CLOSED)
    for scored, estimate in zip(found, _estimates(exact, draws, METRICS[DISTANCE].least), strict=True):
        scored[DISTANCE] = estimate
    if len(teacher) >= MIN_FRECHET and exact[0] != exact[1]:
        _add_closed(found[2:], exact, draws, has_first=bool(rows and rows[0]))
    left = iter(found[2:])
    return [*found[:2], *(next(left) if row else {} for row in rows)]


def _share(contestants: list[list[Readings]], name: str) -> list[Estimate]:
    return _estimates(*_resampled(contestants, name, name), METRICS[name].least, METRICS[name].most)


def _add_closed(found: list[dict[str, Estimate]], exact: Values, draws: list[Values], *, has_first: bool) -> None:
    closed, drawn = _closed(exact), [_closed(draw) for draw in draws]
    for scored, estimate in zip(found, _estimates(closed, drawn), strict=True):
        scored[CLOSED] = estimate
    if has_first:
        for scored, gap in zip(found, _estimates(_gaps(closed), [_gaps(draw) for draw in drawn]), strict=True):
            scored[DIFFERENCE] = gap


def _gaps(closed: Values) -> Values:
    """What each row closes more than the first."""
    return [[value - other for value, other in _paired(row, closed[0])] for row in closed]


def _paired(row: list[float], first: list[float]) -> list[tuple[float, float]]:
    """Values with those of the first row's same seed; with its mean where the numbers of seeds differ."""
    return list(zip(row, first if len(first) == len(row) else [statistics.fmean(first)] * len(row), strict=True))


def _closed(distances: Values) -> Values:
    """The shares that the rows close, from the distances of teacher, base and rows."""
    (teacher,), (base,), *rows = distances
    return [[(base - value) / (base - teacher) for value in row] for row in rows]


def _resampled(contestants: list[list[Readings]], name: str, purpose: str) -> tuple[Values, list[Values]]:
    """A metric's values, and those of resampled prompts, which are the resamples of `comparison`."""
    count, metric = len(contestants[0][0]), METRICS[name]
    prompts = generator_for("bootstrap", purpose)

    def values(chosen: Tensor | None) -> Values:
        compute: Callable[[Readings], float] = metric.compute
        return [[compute(one if chosen is None else one[chosen]) for one in row] for row in contestants]

    draws = [values(torch.randint(count, (count,), generator=prompts)) for _ in range(metric.draws)]
    return values(None), draws


def _estimates(
    exact: Values, drawn: list[Values], least: float = -float("inf"), most: float = float("inf")
) -> list[Estimate]:
    """Means of the exact values, with the middle 95 % of the drawn means and the seeds' error around them."""
    made = []
    for k, row in enumerate(exact):
        mean = statistics.fmean(row)
        spread = statistics.stdev(row) if len(row) > 1 else None
        errors = torch.tensor([statistics.fmean(draw[k]) for draw in drawn], dtype=torch.float64)
        errors = errors - errors.mean()  # a resample repeats rows, which biases distances
        if spread is not None:
            errors = (errors[:, None] + spread / len(row) ** 0.5 * _student_t(len(row) - 1)).flatten()
        below, above = torch.quantile(errors, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        made.append(Estimate(mean, spread, max(mean + below, least), min(mean + above, most), list(row)))
    return made


@functools.cache
def _student_t(freedom: int) -> Tensor:
    """Draws of Student's t distribution: a normal number over the root of the mean of so many squared ones."""
    generator = generator_for("seeds", freedom)
    normal = torch.randn(T_DRAWS, dtype=torch.float64, generator=generator)
    return normal / torch.randn(T_DRAWS, freedom, dtype=torch.float64, generator=generator).square().mean(1).sqrt()

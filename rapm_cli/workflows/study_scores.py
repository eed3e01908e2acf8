"""Scores of a study's rows over their seeds: means, spreads, and intervals that resample prompts and seeds."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.core.randomness import generator_for
from rapm_cli.metrics.registry import METRICS, Readings
from rapm_cli.workflows.comparison import MIN_FRECHET

SHARES, DISTANCE = ("attributes", "pictures"), "fd-demo"
CLOSED, DIFFERENCE = "closed", "difference"
Values = list[list[float]]  # of each contestant, of each of its seeds


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

    The interval of a mean is that of a bootstrap: every resample takes other prompts, the same for everybody, and
    other seeds, the same for all rows of as many, as rows share trajectories and first weights where the seed is the
    same. With few seeds their part in it is too narrow: of S it shows (S - 1) / S of their variance.

    Args:
        teacher: Readings of its pictures.
        base: The same of the bare base.
        rows: The same of each row, for each of its seeds; at least one.
    """
    contestants = [[teacher], [base], *rows]
    found: list[dict[str, Estimate]] = [{} for _ in contestants]
    for name in SHARES:
        for scored, estimate in zip(found, _share(contestants, name), strict=True):
            scored[name] = estimate
    exact, draws = _resampled(contestants, DISTANCE, CLOSED)
    least = METRICS[DISTANCE].least
    for scored, estimate in zip(found, _estimates(exact, [draw.means() for draw in draws], least), strict=True):
        scored[DISTANCE] = estimate
    if len(teacher) >= MIN_FRECHET and rows and exact[0] != exact[1]:
        _add_closed(found[2:], exact, draws)
    return found


@dataclass(frozen=True)
class _Draw:
    """The values that one resample of the prompts gives, and the seeds that it takes."""

    values: Values
    picks: dict[int, list[int]]  # of as many seeds

    def means(self) -> list[float]:
        return [statistics.fmean(row[k] for k in self.picks[len(row)]) for row in self.values]


def _share(contestants: list[list[Readings]], name: str) -> list[Estimate]:
    exact, draws = _resampled(contestants, name, name)
    return _estimates(exact, [draw.means() for draw in draws], METRICS[name].least, METRICS[name].most)


def _add_closed(found: list[dict[str, Estimate]], exact: Values, draws: list[_Draw]) -> None:
    closed = _closed(exact)
    drawn = [_Draw(_closed(draw.values), draw.picks).means() for draw in draws]
    first = closed[0]
    differences = [[value - other for value, other in _paired(row, first)] for row in closed]
    gaps = [[mean - means[0] for mean in means] for means in drawn]
    for scored, estimate, gap in zip(found, _estimates(closed, drawn), _estimates(differences, gaps), strict=True):
        scored[CLOSED], scored[DIFFERENCE] = estimate, gap


def _paired(row: list[float], first: list[float]) -> list[tuple[float, float]]:
    """Values with those of the first row's same seed; with its mean where the numbers of seeds differ."""
    return list(zip(row, first if len(first) == len(row) else [statistics.fmean(first)] * len(row), strict=True))


def _closed(distances: Values) -> Values:
    """The shares that the rows close, from the distances of teacher, base and rows."""
    (teacher,), (base,), *rows = distances
    return [[(base - value) / (base - teacher) for value in row] for row in rows]


def _resampled(contestants: list[list[Readings]], name: str, purpose: str) -> tuple[Values, list[_Draw]]:
    """A metric's values, and those of resamples; for one seed they are the resamples of `comparison`."""
    count, metric = len(contestants[0][0]), METRICS[name]
    prompts, seeds = generator_for("bootstrap", purpose), generator_for("bootstrap", purpose, "seeds")
    counts = sorted({len(row) for row in contestants})

    def values(chosen: Tensor | None) -> Values:
        compute: Callable[[Readings], float] = metric.compute
        return [[compute(one if chosen is None else one[chosen]) for one in row] for row in contestants]

    draws = []
    for _ in range(metric.draws):
        chosen = torch.randint(count, (count,), generator=prompts)
        picks = {many: torch.randint(many, (many,), generator=seeds).tolist() for many in counts}
        draws.append(_Draw(values(chosen), picks))
    return values(None), draws


def _estimates(
    exact: Values, drawn: list[list[float]], least: float = -float("inf"), most: float = float("inf")
) -> list[Estimate]:
    """Means of the exact values, with the middle 95 % of the drawn means, moved so that their middle is the mean."""
    table = torch.tensor(drawn, dtype=torch.float64)  # (draws, rows)
    bounds = torch.quantile(table, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=0) - table.mean(dim=0)
    made = []
    for row, (below, above) in zip(exact, bounds.T.tolist(), strict=True):
        mean = statistics.fmean(row)
        spread = statistics.stdev(row) if len(row) > 1 else None
        made.append(Estimate(mean, spread, max(mean + below, least), min(mean + above, most), list(row)))
    return made

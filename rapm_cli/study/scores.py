"""Values of a study's rows over their seeds: means, spreads, and intervals that cover prompts and seeds."""

import functools
import statistics

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.metrics import bootstrap_of
from rapm_cli.metrics.bootstrap import QUANTILES, resampled
from rapm_cli.metrics.gap_closed import DISTANCE, FEWEST_SAMPLES, gap
from rapm_cli.metrics.metric import Estimate, LabelledSamples

SHARES = ("attributes", "pictures")
GAP_CLOSED, DIFFERENCE = "closed", "difference"  # keys of the record
Values = list[list[float]]  # for each model, one value for each of its seeds
T_DRAWS = 20_000


def scores(
    teacher: LabelledSamples, base: LabelledSamples, rows: list[list[LabelledSamples]]
) -> list[dict[str, Estimate]]:
    """Return values by metric for the teacher, the base and every row.

    `GAP_CLOSED` is the `gap` in Fréchet distances. `DIFFERENCE` is a row's gap closed
    less that of the first row. Both are missing for teacher and base, for too few samples, and if there is no gap.

    The interval of a mean adds two errors. The error of the prompts comes from a bootstrap with the same resamples for
    every model. The error of S seeds is their spread over sqrt(S) times Student's t with S - 1 degrees of freedom. For
    `DIFFERENCE` the spread is that of the differences by seed: rows with equal seeds share trajectories and first
    weights.

    Args:
        teacher: Samples of the teacher.
        base: Samples of the undistilled base.
        rows: For each row, the samples for each of its seeds; empty if a row has none.
    """
    models = [[teacher], [base], *(row for row in rows if row)]
    found: list[dict[str, Estimate]] = [{} for _ in models]
    for name in SHARES:
        for scored, estimate in zip(found, _share(models, name), strict=True):
            scored[name] = estimate
    exact, resamples = _resampled(models, DISTANCE, "closed")
    for scored, estimate in zip(found, _estimates(exact, resamples, bootstrap_of(DISTANCE).lowest), strict=True):
        scored[DISTANCE] = estimate
    if len(teacher) >= FEWEST_SAMPLES and exact[0] != exact[1]:
        _add_gaps(found[2:], exact, resamples, has_first=bool(rows and rows[0]))
    left = iter(found[2:])
    return [*found[:2], *(next(left) if row else {} for row in rows)]


def _share(models: list[list[LabelledSamples]], name: str) -> list[Estimate]:
    return _estimates(*_resampled(models, name, name), bootstrap_of(name).lowest, bootstrap_of(name).highest)


def _add_gaps(found: list[dict[str, Estimate]], exact: Values, resamples: list[Values], *, has_first: bool) -> None:
    gaps, others = _gaps(exact), [_gaps(one) for one in resamples]
    for scored, estimate in zip(found, _estimates(gaps, others), strict=True):
        scored[GAP_CLOSED] = estimate
    if has_first:
        differences = _estimates(_differences(gaps), [_differences(one) for one in others])
        for scored, estimate in zip(found, differences, strict=True):
            scored[DIFFERENCE] = estimate


def _differences(gaps: Values) -> Values:
    """Return each row's gap closed less that of the first row."""
    return [[value - other for value, other in _paired(row, gaps[0])] for row in gaps]


def _paired(row: list[float], first: list[float]) -> list[tuple[float, float]]:
    """Return values with the first row's value for the same seed; with its mean if the numbers of seeds differ."""
    return list(zip(row, first if len(first) == len(row) else [statistics.fmean(first)] * len(row), strict=True))


def _gaps(distances: Values) -> Values:
    """Return the gap closed by each row, from the distances of teacher, base and rows."""
    (teacher,), (base,), *rows = distances
    return [[gap(teacher, base, value) for value in row] for row in rows]


def _resampled(models: list[list[LabelledSamples]], name: str, purpose: str) -> tuple[Values, list[Values]]:
    """Return a metric's values, and its values for resampled prompts; an evaluation has the same resamples."""
    metric = bootstrap_of(name)

    def values(prompts: Tensor) -> Values:
        return [[metric.statistic(one[prompts]) for one in row] for row in models]

    return resampled(values, len(models[0][0]), generator_for("bootstrap", purpose), metric.draws)


def _estimates(
    exact: Values, resamples: list[Values], lowest: float = -float("inf"), highest: float = float("inf")
) -> list[Estimate]:
    """Return the means of the exact values; their intervals join the resampled means with the error of the seeds."""
    made = []
    for k, row in enumerate(exact):
        mean = statistics.fmean(row)
        spread = statistics.stdev(row) if len(row) > 1 else None
        errors = torch.tensor([statistics.fmean(one[k]) for one in resamples], dtype=torch.float64)
        errors = errors - errors.mean()  # a resample repeats rows, which biases distances
        if spread is not None:
            errors = (errors[:, None] + spread / len(row) ** 0.5 * _student_t(len(row) - 1)).flatten()
        below, above = torch.quantile(errors, QUANTILES).tolist()
        made.append(Estimate(mean, max(mean + below, lowest), min(mean + above, highest), spread, by_seed=tuple(row)))
    return made


@functools.cache
def _student_t(freedom: int) -> Tensor:
    """Return draws of Student's t: a normal number over the root of the mean of `freedom` squared ones."""
    generator = generator_for("seeds", freedom)
    normal = torch.randn(T_DRAWS, dtype=torch.float64, generator=generator)
    return normal / torch.randn(T_DRAWS, freedom, dtype=torch.float64, generator=generator).square().mean(1).sqrt()

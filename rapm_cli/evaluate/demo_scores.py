"""What a comparison says: scores with intervals, and the distance that a student closes."""

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.registry import METRICS, Readings

MIN_FRECHET = 640  # pictures, ten for each of the reader's features


@dataclass(frozen=True)
class Score:
    """One metric of one contestant: the value and a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the comparison: who, the seconds and readings of the pictures, and the scores."""

    contestant: EvalModel
    seconds: float
    readings: Readings
    scores: dict[str, Score]


@dataclass(frozen=True)
class Part:
    """The comparison on one part of the world."""

    name: str
    samples: int
    seed: int
    rows: list[Row]

    @cached_property
    def closed(self) -> Score | None:
        """(FD_base - FD_student) / (FD_base - FD_teacher): 1 where the student is as near as its teacher.

        Its interval resamples the prompts of all three together. None where a row is missing, where base and
        teacher are equally far, or where there are too few pictures for a Fréchet distance to mean anything.
        """
        scored = {row.contestant.role: row for row in self.rows if "fd-demo" in row.scores}
        if not {"teacher", "base", "student"} <= scored.keys() or self.samples < MIN_FRECHET:
            return None
        if scored["base"].scores["fd-demo"].value == scored["teacher"].scores["fd-demo"].value:
            return None  # there is no distance to close
        rows = {role: row.readings for role, row in scored.items()}

        def share(chosen: Tensor) -> float:
            distance = {role: METRICS["fd-demo"].compute(readings[chosen]) for role, readings in rows.items()}
            return (distance["base"] - distance["student"]) / (distance["base"] - distance["teacher"])

        draws = METRICS["fd-demo"].draws
        low, high = bootstrap_interval(share, self.samples, generator_for("bootstrap", "closed"), draws=draws)
        return Score(share(torch.arange(self.samples)), low, high)


def score(readings: Readings, name: str) -> Score:
    """A metric's value and interval; the interval keeps to the values that the metric can take."""
    metric = METRICS[name]
    low, high = bootstrap_interval(
        lambda chosen: metric.compute(readings[chosen]),
        len(readings),
        generator_for("bootstrap", name),
        draws=metric.draws,
    )
    return Score(metric.compute(readings), max(low, metric.least), min(high, metric.most))


def to_record(part: Part) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "part": part.name,
        "samples": part.samples,
        "seed": part.seed,
        "closed": asdict(part.closed) if part.closed else None,
        "rows": [
            {
                "name": row.contestant.title,
                "evaluations": row.contestant.evaluations,
                "seconds_per_picture": round(row.seconds, 4),
                "metrics": {name: asdict(score) for name, score in row.scores.items()},
            }
            for row in part.rows
        ],
    }


def title(part: Part) -> str:
    """What a comparison was measured on."""
    return f"{part.samples} {part.name}, seed {part.seed}, 95 % intervals"


def table(part: Part) -> tuple[list[str], list[list[str]]]:
    """Titles, and for each contestant the cells below them."""
    names = list(part.rows[0].scores)
    titles = [f"{METRICS[name].title} {'↑' if METRICS[name].is_higher_better else '↓'}" for name in names]
    rows = []
    for row in part.rows:
        cells = [row.contestant.title, str(row.contestant.evaluations), f"{row.seconds:.3f}"]
        for name in names:
            score, scale = row.scores[name], 100 if METRICS[name].unit == "%" else 1
            value, low, high = (f"{number * scale:.3g}" for number in (score.value, score.low, score.high))
            cells.append(f"{value}{METRICS[name].unit} [{low},{high}]")
        rows.append(cells)
    return ["", "NFE", "s/picture", *titles], rows


def closed_in_words(part: Part) -> str:
    """How much of the distance the student closes; empty where there is no such figure."""
    if part.closed is None:
        return ""
    interval = f"[{part.closed.low:.1%}, {part.closed.high:.1%}]"
    return f"the student closes {part.closed.value:.1%} {interval} of the distance from base to teacher"

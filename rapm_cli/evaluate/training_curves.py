"""A run's log as charts: distances by slot, and the losses of student and discriminators."""

import json
import math
from pathlib import Path
from typing import Any

from rapm_cli.evaluate.charts import Line
from rapm_cli.evaluate.html import Chart

ITERATION = "iteration"
DISTANCES = {
    "absolute": "Distance to the teacher's position",
    "relative": "Distance to the relative position",
}
LOSSES = {
    "adversarial": (
        "The student's adversarial loss",
        "Lower values mean that the discriminators take the student's latents for the teacher's.",
    ),
    "discriminator": ("The discriminators' loss", "A discriminator that sees no difference has a loss of 2."),
}


def training_charts(log: Path) -> list[Chart]:
    """Return the charts of a log. A loss that the method does not have gets no chart; incomplete lines are skipped.

    Args:
        log: File with one JSON object for each iteration.
    """
    entries = _entries(log)
    if len(entries) < 2:
        return []
    xs = [float(entry[ITERATION]) for entry in entries]
    slots = sorted({slot["n"] for entry in entries for slot in entry["slots"]}, reverse=True)
    charts = []
    targets = dict.fromkeys(name for entry in entries for slot in entry["slots"] for name in slot["distance"])
    for target in targets:
        lines = [Line(f"slot {n}", [_of_slot(entry, n, target) for entry in entries]) for n in slots[:6]]
        title = DISTANCES.get(target, f"Distance, {target}")
        charts.append(Chart.of(title, lines, xs, ITERATION, "by slot, the noisiest first."))
    for loss, (title, note) in LOSSES.items():
        names = dict.fromkeys(name for entry in entries for slot in entry["slots"] for name in slot.get(loss, {}))
        lines = [Line(name, [_mean(entry, loss, name) for entry in entries]) for name in names]
        if lines:
            charts.append(Chart.of(title, lines, xs, ITERATION, note, has_zero=False))
    return charts


def _entries(log: Path) -> list[dict[str, Any]]:
    entries = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and {"slots", ITERATION} <= entry.keys():
            entries.append(entry)
    return entries


def _of_slot(entry: dict[str, Any], n: int, target: str) -> float:
    return _number(next((slot["distance"].get(target) for slot in entry["slots"] if slot["n"] == n), None))


def _number(value: float | None) -> float:
    """Return a value of the log, which has null for a number that is not finite."""
    return math.nan if value is None else value


def _mean(entry: dict[str, Any], loss: str, name: str) -> float:
    """Return the mean of a loss over the slots."""
    values = [_number(slot[loss][name]) for slot in entry["slots"] if name in slot.get(loss, {})]
    return math.fsum(values) / len(values) if values else math.nan

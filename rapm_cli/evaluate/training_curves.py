"""A run's log as charts: distances by slot, and both sides of the adversarial game."""

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
GAMES = {
    "adversarial": ("The student's adversarial loss", "It falls where the student deceives the discriminators."),
    "discriminator": ("The discriminators' loss", "A discriminator that sees no difference has 2."),
}


def training_charts(log: Path) -> list[Chart]:
    """What a log has to show; a part that the method lacks has no chart, a line that is not whole is left out."""
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
    for game, (title, note) in GAMES.items():
        names = dict.fromkeys(name for entry in entries for slot in entry["slots"] for name in slot.get(game, {}))
        lines = [Line(name, [_mean(entry, game, name) for entry in entries]) for name in names]
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
    """A value of the log, which writes null for what is not finite."""
    return math.nan if value is None else value


def _mean(entry: dict[str, Any], game: str, name: str) -> float:
    """Over the slots."""
    values = [_number(slot[game][name]) for slot in entry["slots"] if name in slot.get(game, {})]
    return math.fsum(values) / len(values) if values else math.nan

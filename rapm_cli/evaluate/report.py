"""An evaluation as a page: figures, curves, pictures beside the teacher's, the worst and the best, the recipe."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from rapm_cli.core.common.errors import InputError
from rapm_cli.evaluate.charts import Line
from rapm_cli.evaluate.evaluate import Assessed, Assessment
from rapm_cli.evaluate.html import (
    Chart,
    ChartsSection,
    FactsSection,
    Report,
    Section,
    SheetRow,
    SheetSection,
    TableSection,
    embedded,
)
from rapm_cli.evaluate.record import table
from rapm_cli.evaluate.training_curves import training_charts
from rapm_cli.metrics.pictures import Beside
from rapm_cli.runs.images import png_bytes
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.run import Run

SHOWN, EXTREMES = 8, 4  # prompts on the sheet, and among the worst and the best
ROLES = ("teacher", "student", "base")  # from left to right
SIDE_PX = 256  # of an embedded picture at most


def assessment_report(
    made: Assessment, record: dict[str, Any], students: Sequence[ResolvedLora], tables: Sequence[TableSection] = ()
) -> Report:
    """The page of one evaluation.

    Args:
        made: What was found out, with its galleries.
        record: The same as JSON values.
        students: The LoRAs, each of which may lie in its run folder.
        tables: Other figures, to stand first.
    """
    sections: list[Section] = [*tables]
    if any(row["metrics"] for row in record["rows"]):
        sections.append(_figures(record))
    sections += [*_edges(made, record), *_pictures(made, record)]
    for chosen in students:
        if charts := training_charts(Run(chosen.lora_path.parent).log):
            sections.append(ChartsSection(f"Training of {chosen.lora_path.parent.name}", charts))
    sections += [_costs(record, students), _recipe(record, students)]
    base, samples = record["base"], f"{record['samples']:,} prompts"
    lead = f"{', '.join(record['loras'])}; {samples}, seed {record['seed']}; fingerprint {record['fingerprint']}"
    return Report(f"A few-step student of {base}", lead, sections)


def _figures(record: dict[str, Any]) -> TableSection:
    columns, rows = table(record)
    note = f"Protocol {record['protocol']}. Brackets are 95 % intervals, ± is the spread of subsets."
    return TableSection("Figures", columns, rows, note=note)


def _edges(made: Assessment, record: dict[str, Any]) -> list[Section]:
    """How far from the teacher's trajectory at every slot border."""
    rows = [(row, said["name"]) for row, said in zip(made.rows, record["rows"], strict=True) if row.beside is not None]
    if not rows:
        return []
    count = min(_beside(row).positions.shape[1] for row, _ in rows)
    xs = list(map(float, range(count)))
    lines = [Line(name, _beside(row).positions.mean(dim=0).tolist()[:count][::-1]) for row, name in rows[:6]]
    chart = Chart.of(
        "Position error",
        lines,
        [x + 1 for x in xs],
        "step",
        "after each step; the last is the picture's.",
        has_points=True,
    )
    note = "Root mean square distance of latents from the teacher's, on the same prompts and noise."
    return [ChartsSection("On the way", [chart], note=note)]


def _pictures(made: Assessment, record: dict[str, Any]) -> list[Section]:
    """The first prompts, and those where the first student is farthest from and nearest to its teacher."""
    student = made.students[0]
    if student.beside is None:
        return []
    off = student.beside.pictures
    order = torch.argsort(off, descending=True).tolist()
    few = min(EXTREMES, len(order) // 2)
    columns = sorted(range(len(made.rows)), key=lambda k: ROLES.index(made.rows[k].gallery.contestant.role))
    rows, titles = [made.rows[k] for k in columns], ["prompt", *(record["rows"][k]["name"] for k in columns)]
    first = _sheet_rows(made, rows, range(min(SHOWN, len(order))))
    sections: list[Section] = [SheetSection("Side by side", titles, first, note="The same noise in a row.")]
    for title, chosen in (("Farthest from the teacher", order[:few]), ("Nearest to the teacher", order[::-1][:few])):
        if few:
            note = "By the root mean square difference of the pictures, in grey levels of 255."
            sections.append(SheetSection(title, titles, _sheet_rows(made, rows, chosen, off), note=note))
    return sections


def _sheet_rows(
    made: Assessment, rows: Sequence[Assessed], numbers: Sequence[int] | range, off: torch.Tensor | None = None
) -> list[SheetRow]:
    """A row for each prompt, with how far the student is from the teacher where that is why it is shown."""
    prompts, words = made.request.prompts, "{:.1f} levels off"
    return [
        SheetRow(prompts[k], [_png(row, k) for row in rows], "" if off is None else words.format(float(off[k])))
        for k in numbers
    ]


def _png(row: Assessed, k: int) -> str:
    plan = row.gallery.plan
    chunk = plan.chunks[k // plan.batch]
    image = Image.fromarray(row.gallery.picture(chunk, k))
    image.thumbnail((SIDE_PX, SIDE_PX))
    return embedded(png_bytes(image))


def _costs(record: dict[str, Any], students: Sequence[ResolvedLora]) -> TableSection:
    rows = [
        [row["name"], str(row["evaluations"]), f"{row['seconds_per_picture']:.3f}", "", "", ""]
        for row in record["rows"]
    ]
    for row, chosen in zip(rows[-len(students) :], students, strict=True):
        row[3:] = _spent(Run(chosen.lora_path.parent))
    columns = ["", "NFE", "s/picture", "training s", "whole run s", "run's peak MiB"]
    return TableSection("Speed and memory", columns, rows, note=f"On {record['machine']}.")


def _spent(run: Run) -> list[str]:
    """Seconds of training, seconds and peak memory of the whole run; empty where the file is not in a run's folder."""
    done: dict[str, Any] = {}
    with contextlib.suppress(InputError):  # of a record that cannot be read: the figures are what was asked for
        done = run.result() if run.log.is_file() else {}
    seconds, peak = done.get("seconds"), done.get("peak_mib")
    if not isinstance(seconds, dict) or peak is None:
        return ["", "", ""]
    return [f"{seconds.get('training', 0):,.0f}", f"{sum(seconds.values()):,.0f}", f"{peak:,.0f}"]


def _recipe(record: dict[str, Any], students: Sequence[ResolvedLora]) -> FactsSection:
    facts = {
        "protocol": f"{record['protocol']}, fingerprint {record['fingerprint']}",
        "pictures": f"{record['preparation']}, rounded {record['rounding']}, {record['batch']} at once",
        **{f"network {name}": identity for name, identity in record["extractors"].items()},
        **{f"reference, {name}": said["made"] for name, said in record["reference"].items()},
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "machine": record["machine"],
    }
    details = {f"Recipe of {chosen.lora_path.name}": json.dumps(chosen.lora.recipe, indent=2) for chosen in students}
    return FactsSection("Recipe", facts, details)


def _beside(row: Assessed) -> Beside:
    assert row.beside is not None
    return row.beside

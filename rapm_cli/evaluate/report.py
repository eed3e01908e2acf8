"""An evaluation as a page: values, curves, images beside the teacher's, the worst and the best, the recipe."""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image

from rapm_cli.core.common.errors import InputError
from rapm_cli.evaluate.charts import Line
from rapm_cli.evaluate.evaluate import EvalResult, ModelResult
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
from rapm_cli.evaluate.models import BASE, STUDENT, TEACHER
from rapm_cli.evaluate.record import tables
from rapm_cli.evaluate.training_curves import training_charts
from rapm_cli.runs.images import png_bytes
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.run import Run

SHOWN, EXTREMES = 8, 4  # prompts on the sheet, and among the worst and the best
ROLES = (TEACHER, STUDENT, BASE)  # from left to right
SIDE_PX = 256  # longest side of an embedded image


def evaluation_report(made: EvalResult, record: dict[str, Any], students: Sequence[ResolvedLora]) -> Report:
    """Return the page of one evaluation.

    Args:
        made: Result of the evaluation.
        record: The same as JSON values.
        students: The LoRAs; a LoRA may be in its run folder.
    """
    sections: list[Section] = []
    if any(row["metrics"] for row in record["rows"]):
        sections += _tables(record)
    sections += [*_legend(record), *_edges(made, record), *_images(made, record)]
    for chosen in students:
        if charts := training_charts(Run(chosen.lora_path.parent).log):
            sections.append(ChartsSection(f"Training of {chosen.lora_path.parent.name}", charts))
    sections += [_costs(record, students), _recipe(record, students)]
    base, samples = record["base"], f"{record['samples']:,} prompts"
    lead = f"{', '.join(record['loras'])}; {samples}, seed {record['seed']}; fingerprint {record['fingerprint']}"
    return Report(f"A few-step student of {base}", lead, sections)


def _tables(record: dict[str, Any]) -> list[Section]:
    """Return a table for each split."""
    about = f"Protocol {record['protocol']}. Brackets are 95 % intervals, ± is the spread of subsets."
    compared = f"Differences from the teacher are on the first {record['beside_teacher']:,} prompts."
    note = f"{about} {compared}" if record["beside_teacher"] else about
    return [
        TableSection(title.capitalize(), columns, rows, note=f"{note} {gap.capitalize()}".strip())
        for title, columns, rows, gap in tables(record)
    ]


def _legend(record: dict[str, Any]) -> list[Section]:
    """Return what each metric of the tables sees and does not see."""
    facts = {each["title"]: f"Does not see {each['does_not_see']}." for each in record["legend"].values()}
    return [FactsSection("What the metrics do not see", facts)] if facts else []


def _edges(made: EvalResult, record: dict[str, Any]) -> list[Section]:
    """Return a chart of the distance from the teacher's trajectory at every slot edge."""
    pairs = zip(made.rows, record["rows"], strict=True)
    differences = [(each["name"], row.evidence.teacher) for row, each in pairs if row.evidence.teacher]
    found = [(name, one.positions) for name, one in differences if one.positions is not None]
    if not found:
        return []
    count = min(positions.shape[1] for _, positions in found)
    lines = [Line(name, positions.mean(dim=0).tolist()[:count][::-1]) for name, positions in found[:6]]
    xs = [float(x + 1) for x in range(count)]
    chart = Chart.of("Position error", lines, xs, "step", "after each step; the last is the image's.", has_points=True)
    note = "Root mean square distance of latents from the teacher's, on the same prompts and noise."
    return [ChartsSection("Along the trajectory", [chart], note=note)]


def _images(made: EvalResult, record: dict[str, Any]) -> list[Section]:
    """Return the first prompts, and those where the first student is farthest from and nearest to its teacher."""
    teacher = made.students[0].evidence.teacher
    if teacher is None:
        return []
    off = teacher.images
    order = torch.argsort(off, descending=True).tolist()
    few = min(EXTREMES, len(order) // 2)
    columns = sorted(range(len(made.rows)), key=lambda k: ROLES.index(made.rows[k].model.role))
    rows, titles = [made.rows[k] for k in columns], ["prompt", *(record["rows"][k]["name"] for k in columns)]
    first = _sheet_rows(made, rows, range(min(SHOWN, len(order))))
    sections: list[Section] = [SheetSection("Side by side", titles, first, note="Each row has the same noise.")]
    for title, chosen in (("Farthest from the teacher", order[:few]), ("Nearest to the teacher", order[::-1][:few])):
        if few:
            note = "By the root mean square difference of the images, in grey levels of 255."
            sections.append(SheetSection(title, titles, _sheet_rows(made, rows, chosen, off), note=note))
    return sections


def _sheet_rows(
    made: EvalResult, rows: Sequence[ModelResult], numbers: Sequence[int] | range, off: torch.Tensor | None = None
) -> list[SheetRow]:
    """Return a row for each prompt; with the student's distance from the teacher if `off` has the distances."""
    prompts = made.splits[0].plan.prompts
    return [
        SheetRow(
            prompts[k], [_png(row, k) for row in rows], "" if off is None else f"{float(off[k]):.1f} grey levels off"
        )
        for k in numbers
    ]


def _png(row: ModelResult, k: int) -> str:
    image = Image.fromarray(row.samples.image(k))
    image.thumbnail((SIDE_PX, SIDE_PX))
    return embedded(png_bytes(image))


def _costs(record: dict[str, Any], students: Sequence[ResolvedLora]) -> TableSection:
    rows = [
        [row["name"], str(row["evaluations"]), f"{row['seconds_per_picture']:.3f}", "", "", ""]
        for row in record["rows"]
    ]
    for row, chosen in zip(rows[-len(students) :], students, strict=True):
        row[3:] = _spent(Run(chosen.lora_path.parent))
    columns = ["", "NFE", "s/image", "training s", "whole run s", "run's peak MiB"]
    return TableSection("Speed and memory", columns, rows, note=f"On {record['machine']}.")


def _spent(run: Run) -> list[str]:
    """Return training seconds, total seconds and peak MiB of a run; empty if the LoRA is not in a run's folder."""
    done: dict[str, Any] = {}
    with contextlib.suppress(InputError):  # a record that cannot be read must not cost the page
        done = run.result() if run.log.is_file() else {}
    seconds, peak = done.get("seconds"), done.get("peak_mib")
    if not isinstance(seconds, dict) or peak is None:
        return ["", "", ""]
    return [f"{seconds.get('training', 0):,.0f}", f"{sum(seconds.values()):,.0f}", f"{peak:,.0f}"]


def _recipe(record: dict[str, Any], students: Sequence[ResolvedLora]) -> FactsSection:
    facts = {
        "protocol": f"{record['protocol']}, fingerprint {record['fingerprint']}",
        "images": f"{record['preparation']}, rounded {record['rounding']}, {record['batch']} at once",
        **{f"network {name}": identity for name, identity in record["extractors"].items()},
        **{f"reference, {name}": said["made"] for name, said in record["reference"].items()},
        "versions": ", ".join(f"{name} {number}" for name, number in record["versions"].items()),
        "machine": record["machine"],
    }
    details = {f"Recipe of {chosen.lora_path.name}": json.dumps(chosen.lora.recipe, indent=2) for chosen in students}
    return FactsSection("Recipe", facts, details)

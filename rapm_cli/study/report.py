"""The result of a study as JSON values, a Markdown table, a contact sheet, and a page with all of them."""

import dataclasses
import functools
import json
import statistics
from pathlib import Path
from typing import Any

from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import file_sha256, replace_file
from rapm_cli.evaluate.evaluate import ModelResult
from rapm_cli.evaluate.html import ChartsSection, ImageSection, Report, Section, TableSection, embedded
from rapm_cli.evaluate.record import EVALUATIONS, Column, Record, table_of, value_column, value_record
from rapm_cli.evaluate.training_curves import training_charts
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.gap_closed import DISTANCE, FEWEST_SAMPLES
from rapm_cli.metrics.metric import Estimate, LabelledSamples
from rapm_cli.runs.images import contact_sheet, png_bytes
from rapm_cli.runs.retry import ready_folder, with_retries
from rapm_cli.runs.versions import versions
from rapm_cli.study.runs import evaluations_of, run_of, seconds_of
from rapm_cli.study.scores import DIFFERENCE, GAP_CLOSED, scores
from rapm_cli.study.study import Cells, Outcome

JSON, MARKDOWN, SHEET, REPORT = "study.json", "study.md", "sheet.png", "report.html"


def to_record(outcome: Outcome) -> Record:
    """Return a study as JSON values; the first two rows are the teacher and the undistilled base."""
    study = outcome.study
    samples = [[] if row.failure else [_labelled(one) for one in row.results if one] for row in outcome.rows]
    first, second, *found = scores(_labelled(outcome.teacher), _labelled(outcome.base), samples)
    return {
        "title": study.title,
        "source": study.source,
        "versions": versions(),
        "base": study.base.name,
        "part": "held-out" if study.held_out else "seen",
        "samples": study.samples,
        "exam_seed": study.exam_seed,
        "seeds": list(study.seeds),
        "options": {name.replace("_", "-"): value for name, value in study.given.items()},
        "machine": outcome.machine,
        "work_seconds": round(outcome.work_seconds, 1),
        "rows": [
            _row("teacher", [outcome.teacher], first),
            _row("base", [outcome.base], second),
            *(_of_cells(row, estimates) for row, estimates in zip(outcome.rows, found, strict=True)),
        ],
    }


def _labelled(result: ModelResult) -> LabelledSamples:
    assert result.evidence.labelled is not None
    return result.evidence.labelled


def _row(name: str, results: list[ModelResult], estimates: dict[str, Estimate]) -> Record:
    return {
        "name": name,
        "evaluations": results[0].model.evaluations if results else None,
        "seconds_per_picture": round(statistics.fmean(one.seconds for one in results), 4) if results else None,
        "metrics": {name: value_record(estimate) for name, estimate in estimates.items()},
    }


def _of_cells(cells: Cells, estimates: dict[str, Estimate]) -> Record:
    results, bare = [one for one in cells.results if one], cells.row.undistilled
    seeds = [_seed(settings.teacher.seed, run_of(settings), cells) for settings in cells.settings]
    trained = [one["training_seconds"] for one in seeds if not one["failure"]]
    asked = [one["training_evaluations"] for one in seeds if not one["failure"]]
    return {
        **_row(cells.row.name, results, estimates),
        "failure": cells.failure,
        "options": cells.chosen.options if cells.chosen else {},
        "recipe": cells.settings[0].recipe() if cells.settings else None,
        "bare": dataclasses.asdict(bare) if bare else None,
        "training_seconds": round(statistics.fmean(trained), 2) if trained else None,
        "training_evaluations": statistics.fmean(asked) if asked else None,
        "training_mib": round(cells.peak_bytes / 2**20, 1) if trained else None,
        "parameters": results[0].model.parameters if results else None,
        "seeds": seeds,
        "tried": cells.tried,
    }


def _seed(seed: int, run: Any, cells: Cells) -> Record:
    failure = cells.failures.get(seed, "")
    return {
        "seed": seed,
        "run": run.folder.name,
        "failure": failure,
        "lora_sha256": None if failure else file_sha256(run.lora),
        "training_seconds": None if failure else seconds_of(run).get("training", 0.0),
        "training_evaluations": None if failure else evaluations_of(run),
    }


def row_title(row: Record) -> str:
    """Return a row's name, with its options if they were chosen among several."""
    best = ", ".join(f"{name} {value}" for name, value in row["options"].items()) if row.get("tried") else ""
    return f"{row['name']} ({best})" if best else str(row["name"])


def _number(name: str, title: str, form: str) -> Column:
    return Column(title, lambda row: format(row[name], form) if row.get(name) else "")


def _value(name: str) -> Column:
    metric = METRICS[name]
    form, spread_form = (".1f", ".1f") if metric.unit else (".3g", ".2g")
    return value_column(name, metric.column, form, metric.unit, spread_form=spread_form)


def _first_value() -> Column:
    """Return the column of a row's first value, or of the reason why the row has none."""
    column = _value("attributes")
    return Column(
        column.title, lambda row: str(row["failure"]).split(":")[0] if row.get("failure") else column.cell(row)
    )


def _difference() -> Column:
    """Return the column of the difference from the first row, which has none itself."""
    column = value_column(DIFFERENCE, "more than the first row", ".1f", "%", sign="+")

    def cell(row: Record) -> str:
        found = row["metrics"].get(DIFFERENCE)
        return "" if found is None or found["low"] == found["high"] else column.cell(row)

    return Column(column.title, cell)


COLUMNS = (
    Column("", row_title),
    EVALUATIONS,
    _first_value(),
    _value("pictures"),
    _value(DISTANCE),
    value_column(GAP_CLOSED, "gap closed ↑", ".1f", "%"),
    _difference(),
    _number("training_seconds", "training s", ".3g"),
    _number("training_evaluations", "training NFE", ",.0f"),
    _number("training_mib", "training MiB", ",.0f"),
    _number("seconds_per_picture", "s/image", ".3f"),
    _number("parameters", "LoRA", ",d"),
)


def table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Return titles and cells of the columns that are not empty."""
    return table_of(COLUMNS, record["rows"])


def summary(record: Record) -> str:
    """Return a description of the prompts and seeds that a table was measured on."""
    seeds = len(record["seeds"])
    words = f"{record['samples']:,} {record['part']} prompts, {seeds} seed{'s' if seeds > 1 else ''}"
    more = "" if record["samples"] >= FEWEST_SAMPLES else f"; the gap closed needs {FEWEST_SAMPLES} prompts or more"
    return f"{words}: mean ± standard deviation of the seeds [95 % interval]{more}"


def setting(record: Record) -> str:
    """Return a sentence on the options that all rows have."""
    named = ", ".join(f"{name} {value}" for name, value in record["options"].items())
    return f"Every row has {named}, unless it says otherwise." if named else ""


def duration(seconds: float) -> str:
    """Return a duration in hours, minutes or seconds."""
    size, unit = next(((s, u) for s, u in ((3600, "h"), (60, "min")) if seconds >= 2 * s), (1, "s"))
    return f"{seconds / size:.3g} {unit}"


def markdown(record: Record, command: str) -> str:
    """Return the table as Markdown, under lines on its origin."""
    titles, rows = table(record)
    about = f"{record['machine']}; {duration(record['work_seconds'])} of work"
    lines = [
        f"**{record['title']}.** {summary(record)}. {setting(record)}".rstrip(),
        f"`{command}`; {about}.",
        "",
        "| " + " | ".join(titles) + " |",
        "| " + " | ".join(["---", *["---:"] * (len(titles) - 1)]) + " |",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
    ]
    return "\n".join(lines) + "\n"


def write(outcome: Outcome, record: Record, folder: Path, command: str, reporter: Reporter) -> dict[str, Path]:
    """Write record, table, contact sheet and page; return their paths by name.

    Raises:
        DiskError: A file cannot be written.
    """
    shown = [("teacher", outcome.teacher), ("base", outcome.base)]
    shown += [(cells.row.name, result) for cells in outcome.rows for result in cells.results if result]
    images = {
        f"{name}, {result.model.evaluations} evaluations": result.images
        for name, result in shown
        if result.images is not None
    }
    sheet = png_bytes(contact_sheet(images, outcome.teacher.shown))
    files = {
        JSON: (json.dumps(record, indent=2) + "\n").encode(),
        MARKDOWN: markdown(record, command).encode(),
        SHEET: sheet,
        REPORT: _page(outcome, record, sheet, command).html().encode(),
    }
    ready_folder(folder)
    for name, data in files.items():
        path, step = folder / name, f"resume with: {command}"
        put = functools.partial(replace_file, path, data)
        with_retries(put, path, len(data), reporter, "runs and samples are kept", step)
    return {name: folder / name for name in files}


def _page(outcome: Outcome, record: Record, sheet: bytes, command: str) -> Report:
    """Return the study as a page: its table, images of all rows, and the training curves of each row's first seed."""
    sections: list[Section] = [
        TableSection("Table", *table(record), note=f"{summary(record)}. {setting(record)} {record['machine']}."),
        ImageSection("The same prompts and noise", embedded(sheet), note="One row for each model."),
    ]
    for cells in outcome.rows:
        charts = training_charts(run_of(cells.settings[0]).log) if cells.settings else []
        if charts:
            seed = cells.settings[0].teacher.seed
            sections.append(ChartsSection(f"Training of {cells.row.name}", charts, note=f"Seed {seed}."))
    return Report(record["title"], f"{command}; {duration(record['work_seconds'])} of work", sections)

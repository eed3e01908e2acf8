"""An evaluation as JSON values and as tables, with everything that a value depends on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rapm_cli.evaluate.evaluate import EvalResult, ModelResult, SplitResult
from rapm_cli.extractors.statistics import Statistics
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.metric import Estimate
from rapm_cli.runs.versions import versions

Record = dict[str, Any]


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        title: Title of the column.
        cell: Record of a row to the text of its cell; empty if there is none.
    """

    title: str
    cell: Callable[[Record], str]


EVALUATIONS = Column("NFE", lambda row: "" if row["evaluations"] is None else str(row["evaluations"]))
SECONDS = Column("s/image", lambda row: f"{row['seconds_per_picture']:.3f}")


def to_record(made: EvalResult, *, base: str, loras: list[str], machine: str) -> Record:
    """Return an evaluation as JSON values.

    Args:
        made: Result of the evaluation.
        base: Name of the base.
        loras: Paths of the students' files.
        machine: Description of the device.
    """
    request, plan = made.request, made.splits[0].plan
    splits = [split_record(split) for split in made.splits]
    if len(loras) > 1:  # the files tell the students apart
        for row, lora in zip(splits[0]["rows"][-len(loras) :], loras, strict=True):
            row["name"] += f": {lora}"
    record = {
        "fingerprint": made.fingerprint,
        **request.protocol.words,
        "clip_model": request.protocol.clip_model,
        "prompts_sha256": made.prompts_digest,
        "base": base,
        "loras": loras,
        "samples": len(plan.prompts),
        "beside_teacher": request.teacher_samples,
        "with_other_noise": request.other_samples,
        "seed": plan.seed,
        "batch": plan.batch,
        "extractors": made.extractors,
        "reference": {name: _reference(each) for name, each in made.references.items()},
        "versions": versions(),
        "machine": machine,
        "rows": splits[0]["rows"],
        "controls": splits[0]["controls"],
        "legend": legend(request.metrics),
        "differences": {name: asdict(difference) for name, difference in made.differences.items()},
    }
    return record | ({"lora": loras[0], "parts": splits} if plan.labels else {})


def split_record(split: SplitResult) -> Record:
    """Return the result of one split as JSON values."""
    gap = split.gap_closed
    return {
        "part": split.plan.name,
        "samples": len(split.plan.prompts),
        "seed": split.plan.seed,
        "closed": value_record(gap) if gap else None,
        "rows": [_row(row) for row in split.rows],
        "controls": [_row(row) for row in split.controls],
    }


def legend(metrics: Sequence[str]) -> Record:
    """Return by metric the damages that it sees, and in words what it does not see."""
    return {
        name: {"title": METRICS[name].title, "sees": list(METRICS[name].sees), "does_not_see": METRICS[name].blind_to}
        for name in metrics
    }


def _reference(made: Statistics) -> dict[str, str | None]:
    return {"source": made.source, "made": made.description, "files": made.files}


def _row(row: ModelResult) -> Record:
    made: Record = {
        "name": row.model.title,
        "role": row.model.role,
        "evaluations": row.model.evaluations,
        "pictures": len(row.samples.plan.prompts),
        "seconds_per_picture": round(row.seconds, 4),
        "metrics": {name: value_record(value) for name, value in row.metrics.items()},
    }
    if row.samples.plan.images:
        teacher = row.evidence.teacher
        made |= {"folder": str(row.samples.folder), "drawn_with": row.samples.versions()}
        positions = None if teacher is None else teacher.positions
        made["positions_by_edge"] = None if positions is None else positions.mean(dim=0).tolist()
    return made


def value_record(value: Estimate, *, with_prompts: bool = True) -> Record:
    """Return a value with those of its interval, spread and values by prompt or by seed that it has."""
    interval: Record = {"low": value.low, "high": value.high}
    if value.by_seed:  # the keys of a study's record
        return {"mean": value.value, "spread": value.spread, **interval, "values": list(value.by_seed)}
    known = {"value": value.value, **interval, "spread": value.spread}
    made = {name: number for name, number in known.items() if number is not None}
    if value.by_prompt is not None and with_prompts:
        made["by_prompt"] = [round(number, 5) for number in value.by_prompt.tolist()]
    return made


def column(name: str, record: Record) -> str:
    """Return the title of a metric; that of the CLIP score has its model, prefix and scale, on which it depends."""
    title = METRICS[name].title
    if name != "clip":
        return title
    prefix = f" '{record['clip_prefix'].strip()}'" if record["clip_prefix"] else ""
    return f"{title} {record['clip_model'].rpartition('/')[2]}{prefix} x100"


def tables(record: Record) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Return title, column titles, rows and note of one table for each split."""
    if "parts" in record:
        return [(split_title(split), *table(record | split), gap_in_words(split)) for split in record["parts"]]
    title = f"{record['samples']:,} prompts, seed {record['seed']}, protocol {record['protocol']}, 95 % intervals"
    return [(title, *table(record), "")]


def split_title(split: Record) -> str:
    """Return the title of a split's table."""
    return f"{split['samples']:,} {split['part']}, seed {split['seed']}, 95 % intervals"


def table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Return column titles, one for each model of a record, and the cells of a row for each metric."""
    models = [*record["rows"], *record.get("controls", ())]
    names = dict.fromkeys(name for row in models for name in row["metrics"])
    images = Column("images", lambda row: f"{row['pictures']:,}")
    metrics = [
        value_column(name, f"{column(name, record)} {METRICS[name].arrow}", METRICS[name].form, METRICS[name].unit)
        for name in names
    ]
    titles, cells = table_of([EVALUATIONS, images, SECONDS, *metrics], models)
    rows = [[title, *row] for title, row in zip(titles, zip(*cells, strict=True), strict=True)]
    return ["", *(row["name"] for row in models)], rows


def table_of(columns: Sequence[Column], rows: Sequence[Record]) -> tuple[list[str], list[list[str]]]:
    """Return titles of the columns that are not empty, and their cells for each row."""
    found = [(column.title, texts) for column in columns if any(texts := [column.cell(row) for row in rows])]
    return [title for title, _ in found], [[texts[k] for _, texts in found] for k in range(len(rows))]


def value_column(
    name: str,
    title: str,
    form: str,
    unit: str = "",
    *,
    spread_form: str | None = None,
    sign: str = "",
    has_interval: bool = True,
) -> Column:
    """Return a column of values with their spreads and intervals.

    Args:
        name: Key in a row's "metrics".
        title: Title of the column.
        form: Python's format of value and interval.
        unit: "%" for shares; else empty.
        spread_form: Python's format of the spread; None for `form`.
        sign: "+" to show the sign of positive values.
        has_interval: Whether to show spreads and intervals.
    """
    scale = 100 if unit == "%" else 1

    def cell(row: Record) -> str:
        value = row["metrics"].get(name)
        if value is None:
            return ""
        number = value["mean"] if "mean" in value else value["value"]
        spread, low = (value.get(key) if has_interval else None for key in ("spread", "low"))
        around = "" if spread is None else f" ±{spread * scale:{spread_form or form}}"
        interval = "" if low is None else f" [{low * scale:{form}},{value['high'] * scale:{form}}]"
        return f"{number * scale:{sign}{form}}{unit}{around}{interval}"

    return Column(title, cell)


def gap_in_words(split: Record) -> str:
    """Return a sentence on the gap closed; empty if it is unknown."""
    gap = split["closed"]
    if gap is None:
        return ""
    interval = f"[{gap['low']:.1%}, {gap['high']:.1%}]"
    return f"the student closes {gap['value']:.1%} {interval} of the distance from base to teacher"

"""An evaluation as JSON values and as tables, with everything that a value depends on."""

from dataclasses import asdict
from typing import Any

from rapm_cli.evaluate.evaluate import EvalResult, ModelResult, SplitResult
from rapm_cli.extractors.statistics import Statistics
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.metric import Estimate
from rapm_cli.runs.versions import versions

Record = dict[str, Any]


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
        "seed": plan.seed,
        "batch": plan.batch,
        "extractors": made.extractors,
        "reference": {name: _reference(each) for name, each in made.references.items()},
        "versions": versions(),
        "machine": machine,
        "rows": splits[0]["rows"],
        "differences": {name: asdict(difference) for name, difference in made.differences.items()},
    }
    return record | ({"lora": loras[0], "parts": splits} if plan.labels else {})


def split_record(split: SplitResult) -> Record:
    """Return the result of one split as JSON values."""
    closed = split.gap_closed
    return {
        "part": split.plan.name,
        "samples": len(split.plan.prompts),
        "seed": split.plan.seed,
        "closed": {"value": closed.value, "low": closed.low, "high": closed.high} if closed else None,
        "rows": [_row(row) for row in split.rows],
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
        made["positions_by_edge"] = None if teacher is None else teacher.positions.mean(dim=0).tolist()
    return made


def value_record(value: Estimate) -> Record:
    """Return a value with those of its interval, spread and values by prompt that it has."""
    known: Record = {"value": value.value, "low": value.low, "high": value.high, "spread": value.spread}
    made = {name: number for name, number in known.items() if number is not None}
    if value.by_prompt is not None:
        made["by_prompt"] = [round(number, 5) for number in value.by_prompt.tolist()]
    return made


def column(name: str, record: Record) -> str:
    """Return the title of a metric; for the CLIP score with model, prefix and scale, without which it says nothing."""
    title = METRICS[name].title
    if name != "clip":
        return title
    prefix = f" '{record['clip_prefix'].strip()}'" if record["clip_prefix"] else ""
    return f"{title} {record['clip_model'].rpartition('/')[2]}{prefix} x100"


def tables(record: Record) -> list[tuple[str, list[str], list[list[str]], str]]:
    """Return title, column titles, rows and note of one table for each split."""
    if "parts" in record:
        return [
            (split_title(split), *table(record | {"rows": split["rows"]}), gap_in_words(split))
            for split in record["parts"]
        ]
    title = f"{record['samples']:,} prompts, seed {record['seed']}, protocol {record['protocol']}, 95 % intervals"
    return [(title, *table(record), "")]


def split_title(split: Record) -> str:
    """Return the title of a split's table."""
    return f"{split['samples']:,} {split['part']}, seed {split['seed']}, 95 % intervals"


def table(record: Record) -> tuple[list[str], list[list[str]]]:
    """Return column titles, and the cells of a row for each model in `record["rows"]`."""
    names = list(dict.fromkeys(name for row in record["rows"] for name in row["metrics"]))
    titles = [f"{column(name, record)}{METRICS[name].column.removeprefix(METRICS[name].title)}" for name in names]
    rows = [
        [row["name"], str(row["evaluations"]), f"{row['pictures']:,}", f"{row['seconds_per_picture']:.3f}"]
        + [value_in_words(row["metrics"].get(name), name) for name in names]
        for row in record["rows"]
    ]
    return ["", "NFE", "images", "s/image", *titles], rows


def value_in_words(value: Record | None, name: str) -> str:
    """Return a value with its spread and interval as a table shows it; empty for None."""
    if value is None:
        return ""
    metric = METRICS[name]
    scale = 100 if metric.unit == "%" else 1
    found = {key: f"{value[key] * scale:{metric.form}}" for key in ("value", "spread", "low", "high") if key in value}
    spread = f" ±{found['spread']}" if "spread" in found else ""
    interval = f" [{found['low']},{found['high']}]" if "low" in found else ""
    return f"{found['value']}{metric.unit}{spread}{interval}"


def gap_in_words(split: Record) -> str:
    """Return a sentence on the gap closed; empty if it is unknown."""
    closed = split["closed"]
    if closed is None:
        return ""
    interval = f"[{closed['low']:.1%}, {closed['high']:.1%}]"
    return f"the student closes {closed['value']:.1%} {interval} of the distance from base to teacher"

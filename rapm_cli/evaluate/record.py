"""An assessment as JSON values, with all that a figure depends on."""

from dataclasses import asdict
from typing import Any

from rapm_cli.evaluate.evaluate import Assessed, Assessment
from rapm_cli.extractors.statistics import Statistics
from rapm_cli.metrics.pictures import PICTURE_METRICS, Figure
from rapm_cli.runs.versions import versions


def to_record(made: Assessment, *, base: str, loras: list[str], machine: str) -> dict[str, Any]:
    """The whole record.

    Args:
        made: What was found out.
        base: Name of the base.
        loras: Paths of the students' files.
        machine: What computed.
    """
    request = made.request
    return {
        "fingerprint": made.fingerprint,
        **request.protocol.words,
        "clip_model": request.protocol.clip_model,
        "prompts_sha256": made.prompts_digest,
        "base": base,
        "loras": loras,
        "samples": len(request.prompts),
        "beside_teacher": len(request.short_plan.prompts),
        "seed": request.seed,
        "batch": request.batch,
        "extractors": made.extractors,
        "reference": {name: _reference(each) for name, each in made.real.items()},
        "versions": versions(),
        "machine": machine,
        "rows": [_row(row, name) for row, name in zip(made.rows, _names(made, loras), strict=True)],
        "differences": {name: asdict(difference) for name, difference in made.differences.items()},
    }


def _reference(made: Statistics) -> dict[str, str | None]:
    return {"source": made.source, "made": made.description, "files": made.files}


def _names(made: Assessment, loras: list[str]) -> list[str]:
    """Titles, and where there are two students the files that tell them apart."""
    titles = [row.gallery.contestant.title for row in made.rows]
    if len(loras) == 1:
        return titles
    told = [f"{row.gallery.contestant.title}: {lora}" for row, lora in zip(made.students, loras, strict=True)]
    return titles[: -len(loras)] + told


def _row(row: Assessed, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "role": row.gallery.contestant.role,
        "evaluations": row.gallery.contestant.evaluations,
        "pictures": len(row.gallery.plan.prompts),
        "seconds_per_picture": round(row.seconds, 4),
        "folder": str(row.gallery.folder),
        "drawn_with": row.gallery.versions(),
        "positions_by_edge": None if row.beside is None else row.beside.positions.mean(dim=0).tolist(),
        "metrics": {name: _figure(figure) for name, figure in row.figures.items()},
    }


def _figure(figure: Figure) -> dict[str, Any]:
    by_prompt = None if figure.by_prompt is None else [round(value, 5) for value in figure.by_prompt.tolist()]
    known = {"value": figure.value, "low": figure.low, "high": figure.high, "spread": figure.spread}
    return {name: value for name, value in known.items() if value is not None} | (
        {"by_prompt": by_prompt} if by_prompt else {}
    )


def titled(name: str, record: dict[str, Any]) -> str:
    """A metric's title; of the CLIP score with model, prefix and scale, without which it says nothing."""
    title = PICTURE_METRICS[name].title
    if name != "clip":
        return title
    prefix = f" '{record['clip_prefix'].strip()}'" if record["clip_prefix"] else ""
    return f"{title} {record['clip_model'].rpartition('/')[2]}{prefix} x100"


def table(record: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Titles, and for each contestant the cells below them."""
    names = list(dict.fromkeys(name for row in record["rows"] for name in row["metrics"]))
    metrics = {name: PICTURE_METRICS[name] for name in names}
    titles = [f"{titled(name, record)} {'↑' if metric.is_higher_better else '↓'}" for name, metric in metrics.items()]
    rows = [
        [row["name"], str(row["evaluations"]), f"{row['pictures']:,}", f"{row['seconds_per_picture']:.3f}"]
        + [_in_words(row["metrics"].get(name), metric.digits) for name, metric in metrics.items()]
        for row in record["rows"]
    ]
    return ["", "NFE", "pictures", "s/picture", *titles], rows


def _in_words(figure: dict[str, Any] | None, digits: int) -> str:
    """A figure with its spread and interval; empty for none."""
    if figure is None:
        return ""
    text = f"{figure['value']:.{digits}f}"
    if "spread" in figure:
        text += f" ±{figure['spread']:.{digits}f}"
    return text + (f" [{figure['low']:.{digits}f},{figure['high']:.{digits}f}]" if "low" in figure else "")

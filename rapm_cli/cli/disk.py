"""`rapm inspect cache`: print what is on the disk, and remove what can be made again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapm_cli.cli.console import Output

if TYPE_CHECKING:
    from rapm_cli.inspect.disk_usage import DiskUsage, Entry

TEXTS = (
    "name",
    "model",
    "kind",
    "base",
    "settings",
    "last used",
    "kept for",
    "run",
    "state",
    "last written",
)  # columns of text; others hold numbers


def survey(out: Output) -> None:
    """Print the disk space of rapm and its models."""
    from rapm_cli.inspect import disk_usage
    from rapm_cli.inspect.inspect import size_in_words

    found = disk_usage.measure()
    _table(out, found, disk_usage.MODELS, ["model", "kind", "size", "last used"], _model)
    for entry in found.of(disk_usage.OTHERS):
        out.data(f"and {entry.facts['count']} other repositories, {_size(entry)}")
    columns = ["name", "base", "made", "settings", "size", "last used", "kept for"]
    _table(out, found, disk_usage.TRAJECTORIES, columns, _trajectories)
    nouns = {disk_usage.FEATURES: "features of evaluations", disk_usage.SAMPLES: "samples of evaluations"}
    for kind, noun in (nouns | {disk_usage.CONVERTED: "converted weights"}).items():
        out.data(_heading(noun, found.total(kind), found.folders[kind]))
    for kind, noun in ((disk_usage.LEFTOVERS, "unfinished files"), (disk_usage.REST, "other small files")):
        if found.of(kind):
            out.data(_heading(noun, found.total(kind), found.of(kind)[0].path))
    _table(out, found, disk_usage.RUNS, ["run", "base", "state", "iterations", "size", "last written"], _run)
    if found.of(disk_usage.STUDIES):
        out.data(_heading("studies and their runs", found.total(disk_usage.STUDIES), found.folders[disk_usage.STUDIES]))
    _left_alone(out, found)
    caches = (
        disk_usage.TRAJECTORIES,
        disk_usage.FEATURES,
        disk_usage.SAMPLES,
        disk_usage.CONVERTED,
        disk_usage.LEFTOVERS,
        disk_usage.REST,
    )
    sums = {
        "models": (disk_usage.MODELS, disk_usage.OTHERS),
        "caches": caches,
        "runs": (disk_usage.RUNS, disk_usage.STUDIES),
    }
    out.data("total: " + ", ".join(f"{noun} {size_in_words(found.total(*kinds))}" for noun, kinds in sums.items()))
    out.result(found.record())


def prune(out: Output, *, is_all: bool, is_sure: bool) -> None:
    """Print what can be removed, ask, and remove it. rapm can make all of it again.

    Args:
        out: Prints and asks.
        is_all: Whether to remove trajectories of unfinished runs too.
        is_sure: Whether to remove without asking.

    Raises:
        ConfigError: A confirmation is needed, and standard input is not a terminal.
        DiskError: Something cannot be removed.
    """
    from rapm_cli.bases.places import cache_dir
    from rapm_cli.inspect import disk_usage
    from rapm_cli.inspect.inspect import size_in_words
    from rapm_cli.inspect.prune import plan_prune
    from rapm_cli.inspect.prune import prune as remove

    found = disk_usage.measure()
    removable, kept = plan_prune(found, is_all=is_all)
    rows = [[entry.kind, entry.path.name, _size(entry), _when(entry)] for entry in removable]
    if rows:
        out.table(f"can be removed from {cache_dir()}", ["", "name", "size", "last used"], rows, text_columns=(0, 1, 3))
    for entry, reason in kept:
        out.data(f"kept: {entry.kind} {entry.path.name}, {_size(entry)}: {reason}")
    _left_alone(out, found)
    size = size_in_words(sum(entry.total_bytes for entry in removable))
    removed: list[Entry] = []
    if removable and (is_sure or out.ask(f"remove {size}? It can be made again")):
        for entry, reason in remove(removable, is_all=is_all):
            if reason:
                kept.append((entry, reason))
                out.warn(f"{entry.path} is not removed: {reason}")
            else:
                removed.append(entry)
    freed = sum(entry.total_bytes for entry in removed)
    out.data(f"removed {size_in_words(freed)}" if removed else "nothing was removed")
    out.result(
        {
            "removed": [_brief(entry) for entry in removed],
            "bytes": freed,
            "kept": [_brief(entry) | {"reason": reason} for entry, reason in kept],
            "left_alone": list(map(str, found.left_alone)),
        }
    )


def _table(out: Output, found: "DiskUsage", kind: str, columns: list[str], row: Callable[["Entry"], list[str]]) -> None:
    """Print the entries of a kind under a line with their folder; that line alone where there is none."""
    heading, rows = _heading(kind, found.total(kind), found.folders[kind]), [row(entry) for entry in found.of(kind)]
    if rows:
        out.table(heading, columns, rows, tuple(k for k, name in enumerate(columns) if name in TEXTS))
    else:
        out.data(heading)


def _heading(noun: str, total_bytes: int, folder: Path) -> str:
    from rapm_cli.inspect.inspect import size_in_words

    return f"{noun}: {size_in_words(total_bytes) if total_bytes else 'none'} in {folder}"


def _model(entry: "Entry") -> list[str]:
    return [entry.facts["repo"], entry.facts["pipeline"].removesuffix("Pipeline"), _size(entry), _when(entry)]


def _trajectories(entry: "Entry") -> list[str]:
    facts, teacher = entry.facts, entry.facts["teacher"]
    words = [f"{teacher.get('num_slots')}x{teacher.get('fine_steps')} steps", f"delta {teacher.get('delta')}"]
    words += [f"guidance {teacher.get('guidance_scale')}", f"seed {teacher.get('seed')}", str(teacher.get("precision"))]
    needed = len(facts["needed_by"])
    kept_for = "in use" if facts["in_use"] else f"{needed} run{'s' * (needed > 1)}" if needed else ""
    made = f"{facts['made']}/{facts['of'] or '?'}"
    settings = ", ".join(words) if teacher else ""
    return [entry.path.name, str(facts["base"] or "?"), made, settings, _size(entry), _when(entry), kept_for]


def _run(entry: "Entry") -> list[str]:
    facts = entry.facts
    done = f"{facts['iterations']}/{facts['of'] or '?'}"
    return [facts["name"], str(facts["base"] or "?"), facts["state"], done, _size(entry), _when(entry)]


def _left_alone(out: Output, found: "DiskUsage") -> None:
    for path in found.left_alone:
        out.data(f"left alone: {path} is {'a link' if path.is_symlink() else 'not made by rapm'}")


def _brief(entry: "Entry") -> dict[str, Any]:
    return {"kind": entry.kind, "path": str(entry.path), "bytes": entry.total_bytes}


def _size(entry: "Entry") -> str:
    from rapm_cli.inspect.inspect import size_in_words

    return size_in_words(entry.total_bytes)


def _when(entry: "Entry") -> str:
    """Return how long ago an entry was used, in the largest unit of which there are at least two."""
    ago = time.time() - entry.used
    for unit, seconds in (("days", 86_400), ("hours", 3600), ("min", 60)):
        if ago >= 2 * seconds:
            return f"{ago / seconds:.0f} {unit} ago" if entry.used else ""
    return "now"

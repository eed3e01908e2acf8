"""Remove cached files that rapm can make again; never a model, a run, or files that another process uses."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.commit import remove_commit
from rapm_cli.core.storage.files import sweep
from rapm_cli.inspect.disk_usage import (
    CONVERTED,
    FEATURES,
    LEFTOVERS,
    SAMPLES,
    TRAJECTORIES,
    DiskUsage,
    Entry,
    trajectory_needs,
)
from rapm_cli.runs.lock import LOCK, holder, try_lock

PRUNABLE = (TRAJECTORIES, FEATURES, SAMPLES, CONVERTED, LEFTOVERS)


def plan_prune(found: DiskUsage, *, is_all: bool) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """Return the entries to remove, and the entries to keep, each with the reason.

    Args:
        found: Result of `measure`.
        is_all: Also remove trajectories of unfinished runs, unless a process is training one.
    """
    removable, kept = [], []
    for entry in found.of(*PRUNABLE):
        in_use = entry.facts.get("in_use")
        reason = f"in use by {in_use}" if in_use else _need(entry, is_all=is_all)
        if reason:
            kept.append((entry, reason))
        else:
            removable.append(entry)
    return removable, kept


def prune(entries: list[Entry], *, is_all: bool) -> Iterator[tuple[Entry, str]]:
    """Remove entries one by one, and yield each with an empty string, or with the reason why it was kept.

    Before each removal, under the entry's lock, runs are checked again: a run that began meanwhile keeps its
    trajectories, or makes them again once the lock is free.

    Args:
        entries: Entries to remove, from `plan_prune`.
        is_all: Also remove trajectories of unfinished runs, unless a process is training one.

    Raises:
        DiskError: An entry cannot be removed; those before it are gone.
    """
    for entry in entries:
        with _held(entry) as in_use:
            reason = f"in use by {in_use}" if in_use else _need(entry, is_all=is_all)
            if not reason:
                _remove(entry)
        yield entry, reason


@contextmanager
def _held(entry: Entry) -> Iterator[str]:
    """Hold the lock of an entry; yields an empty string, or the other process that holds the lock."""
    place = entry.path.parent if entry.kind == CONVERTED else entry.path
    if entry.kind != LEFTOVERS and place.is_dir():
        with try_lock(place / LOCK) as is_mine:
            yield "" if is_mine else holder(place) or "another process"
    else:
        yield ""


def _need(entry: Entry, *, is_all: bool) -> str:
    """Return the reason why a run needs an entry; empty where none does."""
    needs = [need for need in trajectory_needs() if entry.kind == TRAJECTORIES and need.is_for(entry.facts)]
    for need in needs:
        if need.is_running:
            return f"a process is training {need.run.folder}"
    return f"{needs[0].run.folder} is not finished" if needs and not is_all else ""


def _remove(entry: Entry) -> None:
    for path in entry.parts:
        try:
            with contextlib.suppress(FileNotFoundError):  # another process removed it
                if entry.kind == LEFTOVERS:
                    sweep(path.parent)
                else:
                    remove_commit(path)
        except OSError as error:
            raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> DiskError:
    return DiskError(f"{path} cannot be removed: {error.strerror or error}", "change its permissions, and try again")

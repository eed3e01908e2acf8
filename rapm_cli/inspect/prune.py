"""Removing what rapm keeps and can make again; never a model, a run, or what another process works on."""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.commit import remove_commit
from rapm_cli.core.storage.files import sweep
from rapm_cli.inspect.disk_usage import (
    CONVERTED,
    GALLERIES,
    LEFTOVERS,
    READINGS,
    TRAJECTORIES,
    Entry,
    Survey,
    needs_of_runs,
)
from rapm_cli.runs.lock import LOCK, holder, try_lock

PRUNABLE = (TRAJECTORIES, READINGS, GALLERIES, CONVERTED, LEFTOVERS)


def plan(found: Survey, *, is_all: bool) -> tuple[list[Entry], list[tuple[Entry, str]]]:
    """What would be removed, and what would be kept, each with the reason.

    Args:
        found: What there is.
        is_all: Remove what unfinished runs need too, unless a process is at work on one.
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
    """Remove entries one by one; each is yielded when it is gone, or with the reason why it was left.

    What runs need and what is in use is looked at again for each, under its lock: a run that began meanwhile keeps its
    trajectories, or makes them again once the lock is free.

    Raises:
        DiskError: One cannot be removed; those before it are gone.
    """
    for entry in entries:
        with _held(entry) as in_use:
            reason = f"in use by {in_use}" if in_use else _need(entry, is_all=is_all)
            if not reason:
                _remove(entry)
        yield entry, reason


@contextmanager
def _held(entry: Entry) -> Iterator[str]:
    """Hold what an entry is made under the lock of; who else holds it, or an empty string."""
    place = entry.path.parent if entry.kind == CONVERTED else entry.path
    if entry.kind != LEFTOVERS and place.is_dir():
        with try_lock(place / LOCK) as is_mine:
            yield "" if is_mine else holder(place) or "another process"
    else:
        yield ""


def _need(entry: Entry, *, is_all: bool) -> str:
    """Why an entry is needed; empty where it is not."""
    needs = [need for need in needs_of_runs() if entry.kind == TRAJECTORIES and need.is_for(entry.facts)]
    for need in needs:
        if need.is_at_work:
            return f"a process is at work on {need.run.folder}"
    return f"{needs[0].run.folder} is not finished" if needs and not is_all else ""


def _remove(entry: Entry) -> None:
    for path in entry.parts:
        try:
            with contextlib.suppress(FileNotFoundError):  # somebody else removed it
                if entry.kind == LEFTOVERS:
                    sweep(path.parent)
                else:
                    remove_commit(path)
        except OSError as error:
            raise _refusal(path, error) from error


def _refusal(path: Path, error: OSError) -> DiskError:
    return DiskError(f"{path} cannot be removed: {error.strerror or error}", "change its permissions, and try again")

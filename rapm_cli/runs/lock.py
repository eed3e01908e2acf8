"""Locks: one process at a time works on a folder or a file.

The operating system frees the lock of a process that ended, however it ended. See `runs/README.md`.
"""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import DiskError, LockedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import is_gone, make_folder, replace_file
from rapm_cli.runs import signals

LOCK, HOLDER = "lock", "lock.json"  # the second says who holds the first
CLAIM = ".claim"  # ending of the files that `try_lock` locks
POLL_SECONDS = 0.5
SILENT_SECONDS = 1.0  # before a message about waiting; processes that share work often wait for less


@contextmanager
def try_lock(path: Path, *, remove: bool = False) -> Iterator[bool]:
    """Lock a file for as long as the context lasts, without waiting; yield False if another process holds it.

    Args:
        path: File to lock. It is created, with its folder.
        remove: Remove the file at the end.

    Raises:
        DiskError: The file cannot be created or locked.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        make_folder(path.parent)
        lock.acquire(timeout=0)
    except Timeout:
        pass
    except (OSError, NotImplementedError) as error:
        raise DiskError.of(error, path) from error
    is_mine = lock.is_locked
    try:
        yield is_mine
    finally:
        if is_mine and remove:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def locked(folder: Path, reporter: Reporter, remedy: str, *, is_patient: bool = False) -> Iterator[None]:
    """Lock a folder for as long as the context lasts.

    Args:
        folder: Folder to lock. It is created.
        reporter: Receives a line when a dead process's lock is taken over, and when this process waits.
        remedy: What the user can do while another process holds the folder.
        is_patient: Wait for that process instead of raising.

    Raises:
        LockedError: Another process holds the folder, and `is_patient` is false.
        DiskError: The folder cannot be written.
    """
    is_reported, since = False, time.monotonic()
    while True:
        with try_lock(folder / LOCK) as is_mine:
            if is_mine:
                with _signed(folder, reporter):
                    yield
                return
        if not is_patient:
            raise LockedError(f"{folder} is in use by {_holder(folder)}", remedy)
        if not is_reported and time.monotonic() - since >= SILENT_SECONDS:
            reporter.say(f"waiting for {_holder(folder)}, which works on {folder}; {remedy}")
            is_reported = True
        signals.pause(POLL_SECONDS)


@contextmanager
def _signed(folder: Path, reporter: Reporter) -> Iterator[None]:
    """Describe this process in the folder for as long as the context lasts."""
    if (folder / HOLDER).exists():
        reporter.say(f"{folder} was held by {_holder(folder)}, which is gone; taking over")
    record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
    try:
        with contextlib.suppress(OSError):  # a full disk is reported by the next write of the job itself
            replace_file(folder / HOLDER, json.dumps(record).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)


def holder(folder: Path) -> str:
    """Describe the process that seems to hold a folder; empty where there is none.

    The lock itself is not touched, because that could make another process fail.
    """
    record = _record(folder)
    is_local = record.get("host") == socket.gethostname()
    if not record or (is_local and isinstance(record.get("pid"), int) and is_gone(record["pid"])):
        return ""
    return _holder(folder)


def _holder(folder: Path) -> str:
    record = _record(folder)
    words = f"pid {record.get('pid')} on {record.get('host')} since {record.get('since')}"
    return words if record else "another process"


def _record(folder: Path) -> dict[str, Any]:
    """Return what the holder wrote about itself; empty where that is missing or damaged."""
    try:
        record = json.loads((folder / HOLDER).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}

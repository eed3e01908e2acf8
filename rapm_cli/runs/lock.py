"""One process at a time on a folder; the system frees the lock of a process that is gone, however it went."""

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
CLAIM = ".claim"  # ending of the files that `claimed` locks
POLL_SECONDS = 0.5
SILENT_SECONDS = 1.0  # of waiting: several processes that share work often wait for less


@contextmanager
def locked(folder: Path, reporter: Reporter, remedy: str, *, is_patient: bool = False) -> Iterator[None]:
    """Hold a folder.

    Args:
        folder: Is made.
        reporter: Is told of a lock whose process is gone, and of waiting.
        remedy: What to do where another process holds it.
        is_patient: Wait for that process instead.

    Raises:
        LockedError: Another process holds it.
        DiskError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, is_told, since = FileLock(folder / LOCK), False, time.monotonic()
    while not lock.is_locked:
        try:
            make_folder(folder)
            lock.acquire(timeout=0)
        except Timeout as error:
            if not is_patient:
                raise LockedError(f"{folder} is in use by {_holder(folder)}", remedy) from error
            if not is_told and time.monotonic() - since >= SILENT_SECONDS:
                reporter.say(f"waiting for {_holder(folder)}, which works on {folder}; {remedy}")
                is_told = True
            signals.pause(POLL_SECONDS)
        except (OSError, NotImplementedError) as error:
            raise DiskError.of(error, folder / LOCK) from error
    try:
        if (folder / HOLDER).exists():
            reporter.say(f"{folder} was held by {_holder(folder)}, which is gone; taking over")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        with contextlib.suppress(OSError):  # of a full disk: what is written next will tell
            replace_file(folder / HOLDER, json.dumps(record).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process has a piece of work that several may take; nothing is waited for.

    Args:
        path: A file for that piece, which is gone at the end.

    Raises:
        DiskError: It cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        make_folder(path.parent)
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    except (OSError, NotImplementedError) as error:
        raise DiskError.of(error, path) from error
    try:
        yield True
    finally:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
        lock.release()


@contextmanager
def if_free(folder: Path) -> Iterator[str]:
    """Hold a folder where nobody does; who holds it, or an empty string once this process does.

    Nothing is waited for, and the folder may be removed inside.

    Raises:
        DiskError: The lock cannot be written.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield _holder(folder)
        return
    except (OSError, NotImplementedError) as error:
        raise DiskError.of(error, folder / LOCK) from error
    try:
        yield ""
    finally:
        lock.release()


def holder(folder: Path) -> str:
    """Who seems to hold a folder, without asking for its lock, which could refuse another; empty where nobody does."""
    record = _record(folder)
    is_here = record.get("host") == socket.gethostname()
    if not record or (is_here and isinstance(record.get("pid"), int) and is_gone(record["pid"])):
        return ""
    return _holder(folder)


def _holder(folder: Path) -> str:
    record = _record(folder)
    words = f"pid {record.get('pid')} on {record.get('host')} since {record.get('since')}"
    return words if record else "another process"


def _record(folder: Path) -> dict[str, Any]:
    """What the holder wrote of itself; empty where it wrote nothing."""
    try:
        record = json.loads((folder / HOLDER).read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return record if isinstance(record, dict) else {}

"""One process at a time on a folder; the system frees the lock of a process that is gone, however it went."""

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapm_cli.core.errors import DiskError, LockedError
from rapm_cli.core.files import make_folder, replace_file
from rapm_cli.core.watch import Watcher
from rapm_cli.workflows import stop

LOCK, HOLDER = "lock", "lock.json"  # the second says who holds the first
POLL_SECONDS = 0.5


@contextmanager
def locked(folder: Path, watcher: Watcher, remedy: str, *, is_patient: bool = False) -> Iterator[None]:
    """Hold a folder.

    Args:
        folder: Is made.
        watcher: Is told of a lock whose process is gone, and of waiting.
        remedy: What to do where another process holds it.
        is_patient: Wait for that process instead.

    Raises:
        LockedError: Another process holds it.
        DiskError: The folder cannot be written.
    """
    from filelock import FileLock, Timeout

    lock, is_told = FileLock(folder / LOCK), False
    while not lock.is_locked:
        try:
            make_folder(folder)
            lock.acquire(timeout=0)
        except Timeout as error:
            if not is_patient:
                raise LockedError(f"{folder} is in use by {_holder(folder)}", remedy) from error
            if not is_told:
                watcher.say(f"waiting for {_holder(folder)}, which works on {folder}; {remedy}")
            is_told = True
            stop.pause(POLL_SECONDS)
        except (OSError, NotImplementedError) as error:
            raise DiskError.of(error, folder / LOCK) from error
    try:
        if (folder / HOLDER).exists():
            watcher.say(f"{folder} was held by {_holder(folder)}, which is gone; taking over")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with contextlib.suppress(OSError):  # of a full disk: what is written next will tell
            replace_file(folder / HOLDER, json.dumps(record).encode())
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        record = json.loads((folder / HOLDER).read_text())
        return f"pid {int(record['pid'])} on {record['host']} since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"

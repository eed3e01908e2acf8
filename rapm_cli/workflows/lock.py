"""One process at a time on a run; the system frees the lock of a process that is gone, however it went."""

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rapm_cli.core.errors import DiskError, LockedError
from rapm_cli.core.files import replace_file
from rapm_cli.workflows.watch import Watcher

LOCK, HOLDER = "lock", "lock.json"  # the second says who holds the first


@contextmanager
def locked(folder: Path, watcher: Watcher, remedy: str = "wait for it, or stop it") -> Iterator[None]:
    """Hold a run.

    Args:
        folder: Of the run.
        watcher: Is told of a lock whose process is gone.
        remedy: What to do where another process holds it.

    Raises:
        LockedError: Another process holds it.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise LockedError(f"{folder} is in use by {_holder(folder)}", remedy) from error
    except (OSError, NotImplementedError) as error:
        raise DiskError.of(error, folder / LOCK) from error
    try:
        if (folder / HOLDER).exists():
            watcher.say(f"{folder} was held by {_holder(folder)}, which is gone; taking over")
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        record = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        try:
            replace_file(folder / HOLDER, json.dumps(record).encode())
        except OSError as error:
            raise DiskError.of(error, folder / HOLDER) from error
        yield
    finally:
        (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _holder(folder: Path) -> str:
    try:
        record = json.loads((folder / HOLDER).read_text())
        return f"pid {int(record['pid'])} on {record['host']} since {record['since']}"
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another process"

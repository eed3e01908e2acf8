"""Write results to a disk that may be full: wait for space, a bounded time."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from rapm_cli.core.common.errors import DiskError, is_disk_full
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import make_folder
from rapm_cli.core.storage.room import require_room
from rapm_cli.runs import signals

T = TypeVar("T")

WAITS = (2.0, 10.0, 30.0, 60.0)  # seconds before each new attempt


def ready_folder(folder: Path) -> None:
    """Make a folder for results.

    Raises:
        DiskError: The folder cannot be made, or is a file.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise DiskError.of(error, folder) from error


def with_retries(write: Callable[[], T], place: Path, needed: int, reporter: Reporter, saved: str, step: str) -> T:
    """Call `write`; while the disk is full, wait and call it again a few times.

    Args:
        write: Writes a file or folder whole or not at all.
        place: Path that is written.
        needed: Free bytes to require before each attempt.
        reporter: Receives a warning before each wait.
        saved: What is safe if the write fails, for the message.
        step: How the user can continue once the cause is removed, such as "run the same command again".

    Returns:
        What `write` returned.

    Raises:
        DiskError: The write failed.
        Stopped: A signal came during a wait.
    """
    for wait in (*WAITS, None):
        try:
            require_room(place, needed, f"writing {place.name}")
            return write()
        except DiskError as error:
            problem = error
        except (OSError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_disk_full(error):
                raise
            problem = DiskError.of(error, place)
        if wait is None or not problem.is_full:
            break
        reporter.warn(f"{problem.message}; trying again in {wait:.0f} s")
        signals.pause(wait)
        signals.check(saved, problem.then(step))
    lost = DiskError(f"{problem.message}; {saved}", problem.then(step))
    lost.is_full, lost.cure = problem.is_full, problem.cure
    raise lost from problem

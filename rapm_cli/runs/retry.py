"""Room on the disk, waited for, a bounded time, when it runs out."""

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
    """Make a folder that results will go to.

    Raises:
        DiskError: It cannot be made, or is a file.
    """
    try:
        make_folder(folder)
    except OSError as error:
        raise DiskError.of(error, folder) from error


def with_retries(write: Callable[[], T], place: Path, needed: int, reporter: Reporter, saved: str, remedy: str) -> T:
    """Write something that is whole or not there; when the disk is full, wait and try again a few times.

    Args:
        write: Does it; may be called again.
        place: Where.
        needed: Bytes, asked for before each attempt.
        reporter: Is told of every wait.
        saved: What is safe if it cannot be written.
        remedy: How to go on then.

    Raises:
        DiskError: It cannot be written.
        Stopped: A signal came while waiting.
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
        signals.check(saved, remedy)
    raise DiskError(f"{problem.message}; {saved}", remedy) from problem

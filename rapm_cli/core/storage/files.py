"""Files that survive a power cut: written, flushed to the disk and renamed, in that order."""

import contextlib
import hashlib
import os
import re
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rapm_cli.core.common.errors import InputError

TEMPORARY = ".rapm-tmp-"  # how the name of everything unfinished begins
ASIDE = ".rapm-old-"  # and of what was moved aside while something new takes its place
_MARKED = re.compile(
    rf"(?P<mark>{re.escape(TEMPORARY)}|{re.escape(ASIDE)})(?P<host>[0-9a-f]{{6}})-(?P<owner>[0-9]+)-(?P<name>.+)"
)
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
FOREIGN_SECONDS = 86_400  # after which what another machine left unfinished in a shared folder is taken for litter


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and see it to the disk; its name is safe once its folder is synced.

    Raises:
        OSError: It exists, or cannot be written.
    """
    with path.open("xb") as file:
        write_all(file, data)
        file.flush()
        os.fsync(file.fileno())


def write_all(file: BinaryIO, data: bytes) -> None:
    """Every byte that is put into a commit passes here."""
    file.write(data)


def sync(path: Path) -> None:
    """See a file's bytes, or a folder's names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no such thing
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_plain(name: str) -> bool:
    """True for a path, with slashes, that stays inside its folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name == "/".join(parts) and not ({"..", "/", "."} & set(parts)) and "\\" not in name


def make_folder(path: Path) -> None:
    """Make a folder and those that it lies in, and see their names to the disk.

    Raises:
        OSError: It cannot be made, or is a file.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name to write a file under, which then takes the place of `path` whole, or is removed.

    Args:
        path: File to make or replace; its folder is made.

    Raises:
        OSError: It cannot be written.
    """
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        yield temporary
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file whole, or leave what is there.

    Raises:
        OSError: It cannot be written.
    """
    with replacing(path) as temporary:
        write_file(temporary, data)


def temporary_name(path: Path, mark: str = TEMPORARY) -> Path:
    """A name beside `path` that tells which process will remove it; the ending is kept."""
    return path.with_name(f"{mark}{_HOST}-{os.getpid()}-{path.name}")


def leftovers(folder: Path) -> list[Path]:
    """What processes that are gone left unfinished in a folder, or moved aside in it, which comes first.

    A process of this machine is asked for by its number, one of another is given a day.
    """
    return [path for path in sorted(folder.iterdir()) if _is_leftover(path)] if folder.is_dir() else []


def sweep(folder: Path) -> None:
    """Clear a folder of leftovers; what was moved aside is put back where it is missed."""
    for path in leftovers(folder):
        marked = _MARKED.fullmatch(path.name)
        with contextlib.suppress(OSError):  # of a folder that cannot be written
            if marked and marked["mark"] == ASIDE and not path.with_name(marked["name"]).exists():
                path.rename(path.with_name(marked["name"]))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_marked(path: Path) -> bool:
    """True for the name of something unfinished, or moved aside, whoever works on it."""
    return bool(_MARKED.fullmatch(path.name))


def _is_leftover(path: Path) -> bool:
    marked = _MARKED.fullmatch(path.name)
    if marked is None:
        return False
    if marked["host"] == _HOST:
        return is_gone(int(marked["owner"]))
    with contextlib.suppress(OSError):
        return time.time() - path.stat().st_mtime >= FOREIGN_SECONDS
    return False


def is_gone(pid: int) -> bool:
    """True where no process of this machine has that number, or only this one, which then is not the one meant."""
    if os.name == "nt":
        return False  # there, to ask whether a process lives would end it
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return pid == os.getpid()  # this process is asked before it writes, so it is an earlier one's


def regular_file(path: Path, remedy: str) -> Path:
    """The path, where a file of bytes is; opening a FIFO would wait for ever.

    Raises:
        InputError: It cannot be looked at, or is a folder, a FIFO, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{path} cannot be read: {reason}", remedy) from error
    if stat.S_ISREG(mode):
        return path
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    raise InputError(f"{path} is {kinds.get(stat.S_IFMT(mode), 'a device')}, not a file", remedy)


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

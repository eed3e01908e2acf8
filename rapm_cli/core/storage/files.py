"""Files that survive a power cut: they are written, synced to the disk and renamed, in that order."""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from rapm_cli.core.common.errors import InputError

TEMPORARY = ".rapm-tmp-"  # begins the name of every unfinished file and folder
ASIDE = ".rapm-old-"  # begins the name of a folder that was moved aside while a new one takes its place
_MARKED = re.compile(
    rf"(?P<mark>{re.escape(TEMPORARY)}|{re.escape(ASIDE)})(?P<host>[0-9a-f]{{6}})-(?P<owner>[0-9]+)(\.[0-9a-f]{{8}})?-(?P<name>.+)"
)
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:6]
FOREIGN_SECONDS = 86_400  # age at which unfinished files of another machine in a shared folder count as leftovers


def write_file(path: Path, data: bytes) -> None:
    """Write a new file and sync its bytes to the disk; its name is safe only once its folder is synced.

    Raises:
        OSError: The file exists, or cannot be written.
    """
    with path.open("xb") as file:
        write_all(file, data)
        file.flush()
        os.fsync(file.fileno())


def write_all(file: BinaryIO, data: bytes) -> None:
    """Write bytes; all bytes of committed folders pass here, so that tests can make writes fail."""
    file.write(data)


def append_to_file(path: Path, data: bytes) -> None:
    """Append bytes to a file, which is made if it is missing; nothing is synced.

    Raises:
        OSError: The file cannot be written, or is a link.
    """
    with open(path, "ab", opener=_open_no_link) as file:
        file.write(data)


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)  # Windows has no such flag


def sync(path: Path) -> None:
    """Flush a file's bytes, or the names in a folder, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows cannot sync a folder
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_plain(name: str) -> bool:
    """Return True for a relative path, with slashes, that stays inside its folder."""
    parts = PurePosixPath(name).parts
    return bool(parts) and name == "/".join(parts) and not ({"..", "/", "."} & set(parts)) and "\\" not in name


def make_folder(path: Path) -> None:
    """Make a folder and its parents, and sync their names to the disk.

    Raises:
        OSError: The folder cannot be made, or is a file.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync(folder.parent)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; it then replaces `path` as a whole, or is removed after an error.

    Args:
        path: File to make or replace; its folder is made.

    Raises:
        OSError: The file cannot be written.
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
    """Write a file as a whole, or leave the existing one unchanged.

    Raises:
        OSError: The file cannot be written.
    """
    with replacing(path) as temporary:
        write_file(temporary, data)


def temporary_name(path: Path, mark: str = TEMPORARY) -> Path:
    """Return a new name beside `path`, with the same suffix, that identifies the process that will remove it.

    Nobody can guess it: in a folder that others can write to, a link of that name would lead the process elsewhere.
    """
    return path.with_name(f"{mark}{_HOST}-{os.getpid()}.{secrets.token_hex(4)}-{path.name}")


def leftovers(folder: Path) -> list[Path]:
    """List the temporary and moved-aside entries of a folder whose processes have ended, the moved-aside ones first.

    A process of this machine is looked up by its number; one of another machine counts as ended after a day.
    """
    return [path for path in sorted(folder.iterdir()) if _is_leftover(path)] if folder.is_dir() else []


def sweep(folder: Path) -> None:
    """Remove the leftovers in a folder; a moved-aside entry is put back if its original is missing."""
    for path in leftovers(folder):
        marked = _MARKED.fullmatch(path.name)
        with contextlib.suppress(OSError):  # the folder cannot be written
            if marked and marked["mark"] == ASIDE and not path.with_name(marked["name"]).exists():
                path.rename(path.with_name(marked["name"]))
            elif path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def is_marked(path: Path) -> bool:
    """Return True for a temporary or moved-aside name, of any process."""
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
    """Return True if no other process of this machine has that number.

    This process's own number counts as free: it asks before it writes, so an earlier process had the number.
    """
    if os.name == "nt":
        return False  # on Windows os.kill with signal 0 would end the process
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:
        return False
    return pid == os.getpid()


def regular_file(path: Path, remedy: str) -> Path:
    """Return the path if it is a regular file; opening a FIFO would block for ever.

    Args:
        path: Path to check.
        remedy: Remedy of the error.

    Raises:
        InputError: The path cannot be accessed, or is a folder, a FIFO, a socket or a device.
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
    """Return the hexadecimal sha256 of a file.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

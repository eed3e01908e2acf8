"""Commits: folders that exist whole or not at all, as a database's commits do, and whose damage is detected.

A commit is made in this order: temporary folder, files, fsync, manifest, fsync, rename, fsync of the parent folder.
After a kill or a power cut at any point, the folder's name either does not exist or stands for everything. The manifest
holds the sha256 and size of each file and its own sha256; files that disagree with it are never used.
"""

import contextlib
import errno
import hashlib
import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import DamagedError, VerificationError
from rapm_cli.core.storage.files import ASIDE, is_plain, make_folder, sync, temporary_name, write_file

MANIFEST, FORMAT = "MANIFEST.json", 1


@dataclass(frozen=True)
class Manifest:
    """Manifest of a commit.

    Args:
        name: Name of the folder, so that one commit cannot replace another.
        fingerprint: Fingerprint of the settings that made the commit.
        files: Path inside the folder to sha256 and size in bytes.
        parent: Name of the commit before it; None for a first one.
        about: Further facts, as JSON values.
        format: Version of this format.
    """

    name: str
    fingerprint: str
    files: dict[str, dict[str, Any]]
    parent: str | None = None
    about: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def total_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(entry["bytes"] for entry in self.files.values())

    def to_bytes(self) -> bytes:
        """Return the only valid encoding; a manifest with any other byte is damaged."""
        digest = hashlib.sha256(_canonical(vars(self))).hexdigest()
        return _canonical(vars(self) | {"sha256": digest})

    @property
    def is_sound(self) -> bool:
        """True if every value has its type and no file is outside the folder."""
        texts = [self.name, self.fingerprint, self.parent or "", *self.files]
        entries = [set(entry) == {"bytes", "sha256"} and type(entry["bytes"]) is int for entry in self.files.values()]
        is_typed = all(isinstance(text, str) for text in texts) and isinstance(self.about, dict)
        return self.format == FORMAT and is_typed and all(entries) and all(map(is_plain, self.files))


@contextmanager
def committing(
    folder: Path, *, fingerprint: str, parent: str | None = None, about: dict[str, Any] | None = None
) -> Iterator[Path]:
    """Yield a temporary folder to fill; at the end it becomes `folder` and is read back, or is removed after an error.

    Args:
        folder: Path of the commit. An existing one is moved aside, and removed once the new one is verified.
        fingerprint: Fingerprint of the settings that made the commit.
        parent: Name of the commit before it; None for a first one.
        about: Further facts, as JSON values.

    Raises:
        OSError: The commit cannot be written; the existing one is unchanged.
        VerificationError: The commit was read back and differs; the existing one is restored.
    """
    make_folder(folder.parent)
    temporary = temporary_name(folder)
    try:
        temporary.mkdir()
        yield temporary
        files, folders = {}, {temporary}
        for path in sorted(path for path in temporary.rglob("*") if path.is_file()):
            sync(path)
            folders |= {parent for parent in path.parents if parent.is_relative_to(temporary)}
            files[path.relative_to(temporary).as_posix()] = _sum(path)
        manifest = Manifest(folder.name, fingerprint, files, parent, about or {})
        write_file(temporary / MANIFEST, manifest.to_bytes())
        for inner in folders:
            sync(inner)
        _put_in_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def commit(
    folder: Path,
    files: Mapping[str, bytes],
    *,
    fingerprint: str,
    parent: str | None = None,
    about: dict[str, Any] | None = None,
) -> None:
    """Write files as one commit.

    Args:
        folder: Path of the commit.
        files: Path inside the folder to content.
        fingerprint: As in `committing`.
        parent: As in `committing`.
        about: As in `committing`.

    Raises:
        OSError: The commit cannot be written.
        VerificationError: The commit was read back and differs.
    """
    with committing(folder, fingerprint=fingerprint, parent=parent, about=about) as temporary:
        for name, data in files.items():
            write_file(temporary / name, data)


def read_manifest(folder: Path, fingerprint: str | None = None, *, is_movable: bool = False) -> Manifest:
    """Read the manifest of a commit, without its files.

    Args:
        folder: Path of the commit.
        fingerprint: Fingerprint that the commit must have; None for any.
        is_movable: Whether the folder may have been renamed.

    Raises:
        DamagedError: The manifest is missing, damaged, of another format, of another commit or of other settings.
    """
    path = folder / MANIFEST
    try:
        with _opened(path) as file:
            data = file.read()
        record = json.loads(data)
        record.pop("sha256")
        manifest = Manifest(**record)
        is_sound = manifest.is_sound and manifest.to_bytes() == data
    except FileNotFoundError as error:
        raise DamagedError(folder, f"{MANIFEST} is missing") from error
    except OSError as error:
        raise DamagedError(folder, f"{MANIFEST} cannot be read: {error.strerror}") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(folder, f"{MANIFEST} is not what was written") from error
    if not is_sound:
        raise DamagedError(folder, f"{MANIFEST} is not what was written")
    if manifest.name != folder.name and not is_movable:
        raise DamagedError(folder, f"{MANIFEST} is that of {manifest.name}")
    if fingerprint not in (None, manifest.fingerprint):
        raise DamagedError(folder, "it was made with other settings")
    return manifest


def try_manifest(folder: Path) -> Manifest | None:
    """Return the manifest of a commit, or None where it is missing or damaged."""
    with contextlib.suppress(DamagedError):
        return read_manifest(folder)
    return None


def verify(folder: Path, fingerprint: str | None = None, *, is_movable: bool = False) -> Manifest:
    """Compare every file of a commit with its manifest, and return that; arguments as in `read_manifest`.

    Raises:
        DamagedError: The manifest or a file is damaged.
    """
    manifest = read_manifest(folder, fingerprint, is_movable=is_movable)
    for name, expected in manifest.files.items():
        try:
            found = _sum(folder / name)
        except OSError as error:
            raise DamagedError(folder, _missing(name, error)) from error
        if found != expected:
            raise DamagedError(folder, _difference(name, found["bytes"], expected["bytes"]))
    return manifest


def read_commit(folder: Path, fingerprint: str | None = None) -> tuple[Manifest, dict[str, bytes]]:
    """Return the manifest and the verified bytes of each file; arguments as in `read_manifest`.

    Raises:
        DamagedError: The manifest or a file is damaged.
    """
    manifest, contents = read_manifest(folder, fingerprint), {}
    for name, expected in manifest.files.items():
        try:
            with _opened(folder / name) as file:
                data = file.read()
        except OSError as error:
            raise DamagedError(folder, _missing(name, error)) from error
        if len(data) != expected["bytes"] or hashlib.sha256(data).hexdigest() != expected["sha256"]:
            raise DamagedError(folder, _difference(name, len(data), expected["bytes"]))
        contents[name] = data
    return manifest, contents


def remove_commit(folder: Path) -> None:
    """Remove a commit; it is renamed first, so that no process sees a part of it."""
    aside = temporary_name(folder)
    folder.rename(aside)
    sync(folder.parent)
    shutil.rmtree(aside)


def _put_in_place(temporary: Path, folder: Path) -> None:
    """Rename and read back; an existing folder is moved aside first, because no folder can be renamed over it."""
    aside = temporary_name(folder, ASIDE)
    if folder.exists():
        folder.rename(aside)
    try:
        temporary.rename(folder)
        try:
            sync(folder.parent)
            verify(folder)
        except (OSError, DamagedError) as error:
            folder.rename(temporary)  # in one step, so that the name is free for the old folder
            if isinstance(error, OSError):
                raise
            damage = f"{folder} did not read back as it was written: {error.damage}"
            raise VerificationError(damage, "check the disk") from error
    except (OSError, VerificationError):
        if aside.exists():
            aside.rename(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _canonical(record: dict[str, Any]) -> bytes:
    return (json.dumps(record, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    """Open a file of a commit; anything but a regular file, such as a FIFO, raises at once."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no file")
    with path.open("rb") as file:
        yield file


def _sum(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _missing(name: str, error: OSError) -> str:
    return f"{name} is missing" if isinstance(error, FileNotFoundError) else f"{name} cannot be read: {error.strerror}"


def _difference(name: str, found: int, expected: int) -> str:
    return f"{name} has {found:,} bytes of {expected:,}" if found != expected else f"{name}: its sha256 differs"

"""The hash that the hub knows a file by: sha256 of one in LFS, git's sha1 of a small one."""

import hashlib
from pathlib import Path
from typing import BinaryIO, Protocol

from rapm_cli.core.common.progress import Bar

CHUNK_BYTES = 2**20
SHA256_LETTERS = 64


class Hash(Protocol):
    """What hashlib makes."""

    def update(self, data: bytes, /) -> None:
        """Take more bytes."""

    def hexdigest(self) -> str:
        """The hash of all of them."""


def hash_like(digest: str, size: int) -> Hash:
    """A hash of the kind that `digest` is, for a file of `size` bytes."""
    if len(digest) == SHA256_LETTERS:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def is_right(path: Path, digest: str, bar: Bar) -> bool:
    """True where the bytes of a file have that hash.

    Raises:
        OSError: It cannot be read.
    """
    found = hash_like(digest, path.stat().st_size)
    with path.open("rb") as file:
        take(file, found, bar)
    return found.hexdigest() == digest


def take(file: BinaryIO, found: Hash, bar: Bar) -> None:
    """Hash what is left of a file."""
    while chunk := file.read(CHUNK_BYTES):
        found.update(chunk)
        bar.advance(len(chunk))


class _NoBar:
    def advance(self, count: int = 1, note: str = "") -> None:
        pass


NO_BAR = _NoBar()  # for bytes that nobody waits for

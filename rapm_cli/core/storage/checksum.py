"""The checksum that everything here is known by."""

import hashlib
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file's bytes, read in pieces.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

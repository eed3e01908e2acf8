"""Room on the disk, asked for before work is done."""

import shutil
from pathlib import Path

from rapm_cli.core.common.errors import DiskError

SPARE = 2**20  # bytes, for names and manifests


def require_room(place: Path, needed: int, what: str) -> None:
    """Refuse work whose result would not fit.

    Args:
        place: Where it will be written; need not exist yet.
        needed: Bytes.
        what: What is written, in words.

    Raises:
        DiskError: Too little is free.
    """
    if free_bytes(place) < needed + SPARE:
        raise DiskError.full(place, what, needed + SPARE, free_bytes(place))


def free_bytes(place: Path) -> int:
    """Bytes that the user may still write where `place` is or will be."""
    there = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free

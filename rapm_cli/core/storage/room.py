"""Free disk space, checked before work begins."""

import shutil
from pathlib import Path

from rapm_cli.core.common.errors import DiskError

SPARE = 2**16  # bytes, for names and manifests: 16 blocks of a usual disk


def require_room(place: Path, needed: int, what: str) -> None:
    """Refuse work whose result would not fit on the disk.

    Args:
        place: Path that will be written; it need not exist yet.
        needed: Bytes that will be written.
        what: What is written, for the message.

    Raises:
        DiskError: Too little space is free.
    """
    if free_bytes(place) < needed + SPARE:
        raise DiskError.full(place, what, needed + SPARE, free_bytes(place))


def free_bytes(place: Path) -> int:
    """Return the number of bytes that the user can still write at a path, which need not exist yet."""
    there = next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())
    return shutil.disk_usage(there).free

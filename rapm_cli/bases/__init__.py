"""Teachers: what is loaded, and how."""

import hashlib
from pathlib import Path

from rapm_cli.bases.base import BASES, Base, Defaults, Exam, LoadedBase
from rapm_cli.bases.demo import base as _demo  # noqa: F401  registers itself
from rapm_cli.bases.sdxl import folder_base

__all__ = ["BASES", "Base", "Defaults", "Exam", "LoadedBase", "base_identity", "find_base"]


def find_base(name: str) -> Base:
    """The base of that name, or the one in that folder.

    Raises:
        ConfigError: Neither exists.
    """
    if name not in BASES.names() and Path(name).is_dir():
        return folder_base(Path(name))
    return BASES[name]


def base_identity(base: Base) -> str:
    """What identifies a base's weights: the hash of its checksums where it has some, else where they come from."""
    source = base.locate()
    if isinstance(source, Path):
        sums = source.parent / "checksums.json"
        return hashlib.sha256(sums.read_bytes()).hexdigest()[:16] if sums.is_file() else str(source.resolve())
    return source

"""Teachers: what is loaded, and how."""

import contextlib
import hashlib
import json
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
    with contextlib.suppress(OSError):  # no folder has such a name
        if name and name not in BASES.names() and Path(name).is_dir():
            return folder_base(Path(name))
    return BASES[name]


def base_identity(base: Base) -> str:
    """What identifies a base's weights: a hash of their recorded checksums, else of the files' sizes and times.

    For a hub id, which is not located before it is loaded, the id itself.
    """
    source = base.locate()
    if not isinstance(source, Path):
        return source
    sums = source.parent / "checksums.json"
    if sums.is_file():
        student = base.student.name if base.student else ""
        about = repr([item for item in json.loads(sums.read_text()).items() if item[0] != student])
    else:
        stats = {path: path.stat() for path in sorted(source.resolve().rglob("*.safetensors"))}
        about = repr([(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()])
    return hashlib.sha256(about.encode()).hexdigest()[:16]

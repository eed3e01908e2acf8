"""Teachers: what is loaded, and how."""

import contextlib
import hashlib
import json
from pathlib import Path

from rapm_cli.bases.base import BASES, Base, Defaults, Exam, LoadedBase
from rapm_cli.bases.demo import base as _demo  # noqa: F401  registers itself
from rapm_cli.bases.sdxl import folder_base

__all__ = ["BASES", "Base", "Defaults", "Exam", "LoadedBase", "base_identity", "find_base"]

SAMPLES, SAMPLE_BYTES = 32, 2**16  # of each file of weights


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
    """What identifies a base's weights: a hash of their recorded checksums, else of samples of the files.

    The same wherever the folder lies. For a hub id, which is not located before it is loaded, the id itself.
    """
    source = base.locate()
    if not isinstance(source, Path):
        return source
    sums = source.parent / "checksums.json"
    if sums.is_file():
        student = base.student.name if base.student else ""
        about = repr([item for item in json.loads(sums.read_text()).items() if item[0] != student])
    else:
        files = sorted(source.rglob("*.safetensors"))
        about = repr([(path.relative_to(source).as_posix(), _samples_sha256(path)) for path in files])
    return hashlib.sha256(about.encode()).hexdigest()[:16]


def _samples_sha256(path: Path) -> str:
    """Hash of a file's size and of pieces spread over it: gigabytes of other weights differ in all of them."""
    size = path.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for k in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * k // (SAMPLES - 1))
            digest.update(file.read(SAMPLE_BYTES))
    return digest.hexdigest()

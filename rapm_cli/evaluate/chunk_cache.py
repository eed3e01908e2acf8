"""Chunks of work on the disk: found by what made them, kept whole or not at all, shared by several processes."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import commit, read_commit, verify
from rapm_cli.runs.lock import locked
from rapm_cli.runs.retry import with_retries


def read_tensors(chunk: Path, file: str) -> dict[str, Tensor]:
    """Return the tensors in a file of a chunk.

    Raises:
        DamagedError: The chunk is missing or damaged.
    """
    from safetensors.torch import load

    found: dict[str, Tensor] = load(read_commit(chunk, chunk.name)[1][file])
    return found


def is_intact(chunk: Path, *files: str) -> bool:
    """Return whether a chunk is there, intact to the last byte, with these files."""
    with contextlib.suppress(DamagedError):
        return set(files) <= verify(chunk, chunk.name).files.keys()
    return False


@dataclass(frozen=True)
class ChunkCache:
    """A folder of chunks, each a commit whose name is a hash of what made it.

    Args:
        folder: Folder of the chunks.
        reporter: Reporter of damage and of waiting.
        is_strict: Whether damage is an error; otherwise the chunk counts as missing, with a warning.
    """

    folder: Path
    reporter: Reporter
    is_strict: bool = False

    def has(self, name: str, *files: str) -> bool:
        """Return the same as `is_intact`, and report damage.

        Raises:
            DamagedError: The chunk is damaged, and the cache is strict.
        """
        if not (self.folder / name).exists():
            return False
        try:
            return set(files) <= verify(self.folder / name, name).files.keys()
        except DamagedError as error:
            self._report(error)
            return False

    def keep(self, name: str, files: Mapping[str, bytes], about: dict[str, Any] | None = None) -> None:
        """Write a chunk, unless another process has written the same files meanwhile.

        Raises:
            DiskError: The chunk cannot be written.
            Stopped: A signal came while waiting for space.
        """

        def write() -> None:
            with locked(self.folder, self.reporter, "Ctrl-C stops waiting", is_patient=True):
                if not is_intact(self.folder / name, *files):
                    commit(self.folder / name, files, fingerprint=name, about=about)

        size, step = sum(map(len, files.values())), "run the same command again"
        with_retries(write, self.folder / name, size, self.reporter, "earlier results are kept", step)

    def _report(self, error: DamagedError) -> None:
        if self.is_strict:
            raise error
        self.reporter.warn(f"{error.message}; making it again")

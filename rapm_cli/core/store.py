"""Teacher trajectories on disk: safetensors shards, each with its checksum in the store's index."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch

from rapm_cli.core.backbone import Conditioning
from rapm_cli.core.checksum import file_sha256
from rapm_cli.core.trajectories import Trajectories

INDEX = "store.json"


class TrajectoryStore:
    """A folder of shards; shard k holds trajectories `k * shard_size` and on.

    Args:
        folder: Made if it does not exist.
        count: Trajectories in the whole store.
        shard_size: Trajectories in a shard; the last may hold fewer.
        about: What made them, kept in the index.
    """

    def __init__(self, folder: Path, count: int, shard_size: int, about: dict[str, Any]) -> None:
        self.folder, self.count, self.shard_size, self.about = folder, count, shard_size, about
        folder.mkdir(parents=True, exist_ok=True)
        self._sums: dict[str, str] = {}
        try:
            self._sums = json.loads((folder / INDEX).read_text())["shards"]
        except (OSError, ValueError, KeyError, TypeError):
            self._sums = {}  # no index, or a damaged one: its shards cannot be trusted and are made again

    def missing(self) -> list[range]:
        """Rows of every shard that is not there, or whose bytes are not those that were written."""
        return [rows for rows in self._shards() if not self._is_good(rows)]

    def write(self, rows: range, trajectories: Trajectories) -> None:
        """Commit one shard, then the index that vouches for it."""
        from safetensors.torch import save

        cond = trajectories.cond
        tensors = {"z_teacher": trajectories.z_teacher, "z_ahead": trajectories.z_ahead, "tokens": cond.tokens}
        tensors |= {"pooled": cond.pooled} if cond.pooled is not None else {}
        tensors |= {"time_ids": cond.time_ids} if cond.time_ids is not None else {}
        data = save({name: value.cpu().contiguous() for name, value in tensors.items()})
        _commit(self._path(rows), data)
        self._sums[self._path(rows).name] = hashlib.sha256(data).hexdigest()
        index = {"count": self.count, "shard_size": self.shard_size, "about": self.about, "shards": self._sums}
        _commit(self.folder / INDEX, json.dumps(index, indent=1).encode())

    def load(self) -> Trajectories:
        """All trajectories, in order, on the CPU.

        Raises:
            ValueError: A shard is missing or damaged; ask `missing` first.
        """
        from safetensors.torch import load

        if self.missing():
            raise ValueError("the store is not complete")
        shards = [load(self._path(rows).read_bytes()) for rows in self._shards()]

        def column(name: str) -> torch.Tensor | None:
            return torch.cat([shard[name] for shard in shards]) if name in shards[0] else None

        z_teacher, z_ahead, tokens = (
            torch.cat([s[name] for s in shards]) for name in ("z_teacher", "z_ahead", "tokens")
        )
        return Trajectories(z_teacher, z_ahead, Conditioning(tokens, column("pooled"), column("time_ids")))

    def _shards(self) -> list[range]:
        return [range(i, min(i + self.shard_size, self.count)) for i in range(0, self.count, self.shard_size)]

    def _path(self, rows: range) -> Path:
        return self.folder / f"shard-{rows.start:06d}.safetensors"

    def _is_good(self, rows: range) -> bool:
        path = self._path(rows)
        if path.name not in self._sums or not path.exists():
            return False
        return file_sha256(path) == self._sums[path.name]


def _commit(path: Path, data: bytes) -> None:
    """Replace a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)

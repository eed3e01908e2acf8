"""Teacher trajectories on disk: one commit for each shard, so that only damaged shards are computed again."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.storage.commit import Manifest, commit, read_manifest, verify
from rapm_cli.core.storage.files import sweep

FILE = "trajectories.safetensors"


@dataclass(frozen=True)
class StoredTrajectories:
    """Trajectories that are read from their files row by row, through memory maps, on demand.

    Args:
        files: File of each shard, by the number of its first trajectory.
        shard_size: Number of trajectories in each shard but the last of each size.
        count: Number of all trajectories.
        stride: Number of trajectories from one to the next of the same size.
    """

    files: dict[int, Path]
    shard_size: int
    count: int
    stride: int = 1

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, rows: Tensor) -> Trajectories:
        """Read the trajectories of some rows to the CPU.

        Raises:
            DamagedError: A shard was damaged since it was verified.
        """
        return Trajectories.cat([self._read(int(row)) for row in rows])

    def _read(self, row: int) -> Trajectories:
        from safetensors import SafetensorError, safe_open

        turn, k = divmod(row // self.stride, self.shard_size)
        path = self.files[row % self.stride + self.stride * self.shard_size * turn]
        try:
            with safe_open(path, "pt") as file:
                columns = {name: file.get_slice(name)[k : k + 1] for name in file.keys()}  # noqa: SIM118  no dict
        except (OSError, SafetensorError) as error:
            raise DamagedError(path.parent, f"{path.name}: {error}") from error
        cond = Conditioning(columns["tokens"], columns.get("pooled"), columns.get("time_ids"))
        return Trajectories(columns["z_teacher"], columns["z_ahead"], cond)


class TrajectoryStore:
    """A folder of shards; each holds `shard_size` consecutive trajectories of one size, the last may hold fewer.

    Args:
        folder: Folder whose name is the fingerprint of the teacher's settings and the prompts.
        count: Number of trajectories in the whole store.
        shard_size: Number of trajectories in a shard.
        about: Settings of the teacher, kept with every shard.
        stride: Number of trajectories from one to the next of the same size.
    """

    def __init__(self, folder: Path, count: int, shard_size: int, about: dict[str, Any], stride: int = 1) -> None:
        self.folder, self.count, self.shard_size, self.about, self.stride = folder, count, shard_size, about, stride

    @property
    def shards(self) -> list[range]:
        """The rows of every shard, sorted by the first."""
        span = self.shard_size * self.stride
        starts = (start + i for start in range(0, self.count, span) for i in range(self.stride))
        return [range(i, min(i + span, self.count), self.stride) for i in starts if i < self.count]

    def missing(self) -> tuple[list[range], list[DamagedError]]:
        """Return the rows of every missing or damaged shard, and an error for each damaged one.

        Unfinished files of killed processes are removed first.
        """
        sweep(self.folder)
        rows_missing, damage = [], []
        for rows in self.shards:
            if not self._path(rows).exists():
                rows_missing.append(rows)
                continue
            try:
                self._check(rows, verify(self._path(rows), self.folder.name))
            except DamagedError as error:
                rows_missing.append(rows)
                damage.append(error)
        return rows_missing, damage

    def write(self, rows: range, trajectories: Trajectories) -> None:
        """Commit one shard.

        Raises:
            OSError: The shard cannot be written.
            VerificationError: The shard read back differs from what was written.
        """
        from safetensors.torch import save

        tensors = {name: value.cpu().contiguous() for name, value in trajectories.tensors().items()}
        about = self.about | {"rows": _bounds(rows)}
        commit(self._path(rows), {FILE: save(tensors)}, fingerprint=self.folder.name, about=about)

    def stored(self) -> "StoredTrajectories":
        """Return all trajectories without reading them; `missing` finds the damaged ones.

        Raises:
            DamagedError: A shard is missing.
        """
        for rows in self.shards:
            read_manifest(self._path(rows))
        files = {rows.start: self._path(rows) / FILE for rows in self.shards}
        return StoredTrajectories(files, self.shard_size, self.count, self.stride)

    def kept(self) -> int:
        """Return the number of stored trajectories."""
        return sum(len(rows) for rows in self.shards if self._path(rows).exists())

    def total_bytes(self) -> int:
        """Return the size of all stored shards in bytes."""
        return sum(read_manifest(self._path(rows)).total_bytes for rows in self.shards if self._path(rows).exists())

    def _check(self, rows: range, manifest: Manifest) -> None:
        if manifest.about.get("rows") != _bounds(rows) or FILE not in manifest.files:
            raise DamagedError(self._path(rows), "it holds other trajectories")

    def _path(self, rows: range) -> Path:
        return self.folder / f"{rows.start:06d}"


def _bounds(rows: range) -> list[int]:
    """Return the arguments of a shard's range; without the step where it is 1, as older versions did."""
    return [rows.start, rows.stop] if rows.step == 1 else [rows.start, rows.stop, rows.step]

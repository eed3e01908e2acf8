"""Damage of every kind to a checkpoint: found on load, named, and the checkpoint before it used.

Every bit of a small checkpoint is flipped, and bytes at each kind of place of one of the demo base's size.

python -m tests.faults.flips
"""

import random
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from rapm_cli.cli.console import Output
from rapm_cli.core.storage.commit import MANIFEST
from rapm_cli.core.training.recovery import Health
from rapm_cli.runs.checkpoints import Checkpoint, Checkpoints
from rapm_cli.runs.run import Run
from tests.faults.boundaries import SETTINGS, write_checkpoint

Case = tuple[str, str, Path, bytes | None]  # class, file that must be named, path, its damaged bytes or None for gone


def write_large(folder: Path, iterations: int) -> None:
    """Write a checkpoint as large as the demo base's at rank 8."""
    parts = {
        name: {f"layer.{k}": torch.full((size // 64,), float(iterations)) for k in range(64)}
        for name, size in (("student", 843_008), ("student-optimizer", 1_686_016), ("discriminators", 120_000))
    }
    made = Checkpoint(iterations, parts, Health(), b'{"iteration": 0}\n' * 60, 1.0)
    Checkpoints(Run(folder), SETTINGS).save(made, f"{iterations - 1:08d}")


def flipped(data: bytes, position: int, bit: int) -> bytes:
    return data[:position] + bytes([data[position] ^ (1 << bit)]) + data[position + 1 :]


def every_bit(commit: Path) -> Iterator[Case]:
    for path in sorted(commit.iterdir()):
        data = path.read_bytes()
        kind = "manifest" if path.name == MANIFEST else f"{path.suffix} file"
        for position in range(len(data)):
            for bit in range(8):
                yield f"every bit, {kind}", path.name, path, flipped(data, position, bit)


def places(data: bytes) -> dict[str, range]:
    """Return the ranges of the parts of a safetensors file."""
    end = 8 + struct.unpack("<Q", data[:8])[0]
    return {"header length": range(8), "header": range(8, end), "tensor data": range(end, len(data))}


def sampled(commit: Path, dice: random.Random, count: int) -> Iterator[Case]:
    for path in sorted(commit.iterdir()):
        data = path.read_bytes()
        parts = places(data) if path.suffix == ".safetensors" else {f"{path.name}": range(len(data))}
        for part, span in parts.items():
            chosen = {span.start, span.stop - 1, *(dice.choice(span) for _ in range(count))}
            for position in chosen:
                yield f"a bit, {part}", path.name, path, flipped(data, position, dice.randrange(8))


def whole_files(commit: Path, older: Path) -> Iterator[Case]:
    for path in sorted(commit.iterdir()):
        data = path.read_bytes()
        yield "file missing", path.name, path, None
        for length in (0, 1, len(data) // 2, len(data) - 1):
            yield "file truncated", path.name, path, data[:length]
        yield "file with a tail", path.name, path, data + b"\0"
        yield "file zero-filled", path.name, path, bytes(len(data))
        if (older / path.name).read_bytes() != data:
            yield "file of the commit before", path.name, path, (older / path.name).read_bytes()
        other = next(other for other in sorted(commit.iterdir()) if other != path)
        yield "file swapped with another", path.name, path, other.read_bytes()


def try_case(run: Run, case: Case) -> tuple[bool, bool, bool]:
    """Return whether the damage is found, its file is named, and the checkpoint before it is used."""
    _, name, path, data = case
    good = path.read_bytes()
    path.unlink() if data is None else path.write_bytes(data)
    found, damage = Checkpoints(run, SETTINGS).load_newest()
    path.write_bytes(good)
    is_found = [error.place for error in damage] == [path.parent]
    return is_found, is_found and name in damage[0].message, found is not None and found.iterations == 1


def main(samples: int = 200, seed: int = 0, *, is_exhaustive: bool = True) -> dict[str, list[int]]:
    """Run it and print the table: for each class how many cases, found, named, fallen back.

    Args:
        samples: Places of each kind in the large checkpoint.
        seed: Of these places.
        is_exhaustive: Flip every bit of the small one.
    """
    tally: dict[str, list[int]] = {}
    place, dice = Path(tempfile.mkdtemp(prefix="rapm-flips-")), random.Random(seed)
    try:
        small, large = Run(place / "small"), Run(place / "large")
        for k in (1, 2):
            write_checkpoint(small.folder, k)
            write_large(large.folder, k)
        commit, older = large.checkpoints_dir / "00000002", large.checkpoints_dir / "00000001"
        jobs = [(large, case) for case in sampled(commit, dice, samples)]
        jobs += [(large, case) for case in whole_files(commit, older)]
        jobs += [(small, case) for case in every_bit(small.checkpoints_dir / "00000002")] if is_exhaustive else []
        for run, case in jobs:
            counts = tally.setdefault(case[0], [0, 0, 0, 0])
            for k, is_so in enumerate((True, *try_case(run, case))):
                counts[k] += is_so
        shutil.rmtree(commit)
        shutil.copytree(older, commit)
        found, damage = Checkpoints(large, SETTINGS).load_newest()
        is_found = len(damage) == 1 and "MANIFEST.json is that of 00000001" in damage[0].message
        tally["folder of the commit before"] = [1, is_found, is_found, found is not None and found.iterations == 1]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = [[kind, *(f"{count:,}" for count in counts)] for kind, counts in tally.items()]
    Output().table("damage to a checkpoint", ["", "cases", "found", "file named", "older one used"], rows)
    return tally


if __name__ == "__main__":
    raise SystemExit(any(len(set(counts)) > 1 for counts in main().values()))

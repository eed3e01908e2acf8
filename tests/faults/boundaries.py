"""A kill at every write, fsync, rename and removal of a commit: what is found afterwards is the old or the new, whole.

python -m tests.faults.boundaries
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from rapm_cli.cli.console import Output
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.method.store import TrajectoryStore
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.storage import commit as protocol
from rapm_cli.core.storage import files
from rapm_cli.core.training.recovery import Health
from rapm_cli.runs.checkpoints import Checkpoint, Checkpoints
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings

OPERATIONS = ("mkdir", "fsync", "rename", "replace", "unlink", "rmdir")  # of os
SETTINGS = Settings(
    source="demo",
    base_name="demo",
    base_identity="0",
    teacher=TeacherConfig(base="demo", trajectories=2),
    training=TrainConfig(),
    prompts=("a red cube", "a blue cube"),
    samples=0,
    checkpoint_every=1,
)


@dataclass(frozen=True)
class Subject:
    """A kind of folder that is written as commits.

    Args:
        title: Name in the table.
        prepare: Function that makes the old state in an empty folder.
        act: Function that makes the new state from the old one.
        state: Function that returns the folder's state, for comparison; it raises if damage is visible.
        recover: Function that does what the next process does first.
    """

    title: str
    prepare: Callable[[Path], object]
    act: Callable[[Path], object]
    state: Callable[[Path], object]
    recover: Callable[[Path], object]


@dataclass
class Outcome:
    """States found after all kills of one subject."""

    kills: int = 0
    old: int = 0
    new: int = 0
    neither: list[str] = field(default_factory=list)
    litter: int = 0
    redone: int = 0


def checkpoint(iterations: int) -> Checkpoint:
    parts = {"student": {"a": torch.full((64,), float(iterations))}, "student-optimizer": {"b": torch.zeros(8)}}
    return Checkpoint(iterations, parts, Health(), f"{iterations}\n".encode(), 1.0)


def write_checkpoint(folder: Path, iterations: int) -> None:
    Checkpoints(Run(folder), SETTINGS).save(checkpoint(iterations), f"{iterations - 1:08d}")


def newest(folder: Path) -> object:
    for commit in Run(folder).checkpoint_folders():
        protocol.verify(commit)
    found, damage = Checkpoints(Run(folder), SETTINGS).load_newest()
    assert found
    assert not damage
    return found.iterations, found.log, found.parts["student"]["a"].tolist()


def trajectories(value: float) -> Trajectories:
    z = torch.full((2, 5, 4, 2, 2), value)
    return Trajectories(z, z[:, :4], Conditioning(torch.zeros(2, 3, 4)))


def store(folder: Path) -> TrajectoryStore:
    return TrajectoryStore(folder, 2, 2, {})


def write_shard(folder: Path) -> None:
    store(folder).write(range(2), trajectories(2.0))


def damaged_shard(folder: Path) -> None:
    store(folder).write(range(2), trajectories(1.0))
    path = folder / "000000" / "trajectories.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def missing(folder: Path) -> object:
    """Return which trajectories are missing, as a process does before it makes them."""
    return store(folder).missing()


def stored(folder: Path) -> object:
    """Return the shard, or None where it is missing or found damaged, so that it is made again."""
    found = store(folder)
    return None if found.missing()[0] else found.stored()[torch.tensor([0])].z_teacher.mean().item()


def write_export(folder: Path) -> None:
    protocol.commit(folder / "model", {"a": b"new" * 10_000, "b": b"new"}, fingerprint="new")


def exported(folder: Path) -> object:
    """Return the state after the recovery that every process begins with, which puts the old folder back."""
    files.sweep(folder)
    return protocol.read_commit(folder / "model")[1]


SUBJECTS = (
    Subject(
        "checkpoint, the oldest of three removed",
        lambda folder: [write_checkpoint(folder, k) for k in (1, 2)],
        lambda folder: write_checkpoint(folder, 3),
        newest,
        lambda folder: Checkpoints(Run(folder), SETTINGS),
    ),
    Subject(
        "first trajectories of a store", lambda folder: None, write_shard, stored, missing,
    ),
    Subject(
        "damaged trajectories made again", damaged_shard, write_shard, stored, missing,
    ),
    Subject(
        "one folder in another's place",
        lambda folder: protocol.commit(folder / "model", {"a": b"old"}, fingerprint="old"),
        write_export,
        exported,
        files.sweep,
    ),
    Subject(
        "one file in another's place",
        lambda folder: files.replace_file(folder / "result.json", b"old"),
        lambda folder: files.replace_file(folder / "result.json", b"new" * 10_000),
        lambda folder: (folder / "result.json").read_bytes(),
        lambda folder: Checkpoints(Run(folder), SETTINGS),
    ),
)  # fmt: skip


def die_at(boundary: int) -> None:
    """Make this process kill itself at the nth boundary: before, within (writes) or after an operation."""
    count = 0

    def pass_one() -> bool:
        nonlocal count
        count += 1
        return count == boundary

    def guard(real):
        def guarded(*arguments, **named):
            if pass_one():
                os.kill(os.getpid(), signal.SIGKILL)
            result = real(*arguments, **named)
            if pass_one():
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return guarded

    def write_all(file, data):
        for end in (0, len(data) // 2, len(data)):
            if pass_one():
                file.write(data[:end])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        file.write(data)

    for name in OPERATIONS:
        setattr(os, name, guard(getattr(os, name)))
    files.write_all = write_all


def try_all(subject: Subject) -> Outcome:
    """Kill the subject's process at its first boundary, its second, and so on, until it lives to the end."""
    outcome = Outcome()
    place = Path(tempfile.mkdtemp(prefix="rapm-boundaries-"))
    try:
        subject.prepare(place / "before")
        shutil.copytree(place / "before", place / "after") if (place / "before").exists() else None
        subject.act(place / "after")
        old, new = subject.state(place / "before"), subject.state(place / "after")
        for boundary in range(1, 10_000):
            folder = place / "try"
            if (place / "before").exists():
                shutil.copytree(place / "before", folder)
            pid = os.fork()
            if pid == 0:
                die_at(boundary)
                subject.act(folder)
                os._exit(0)
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if code == 0:
                break
            outcome.kills += 1
            found = subject.state(folder)
            outcome.old += found == old
            outcome.new += found == new
            outcome.neither += [f"boundary {boundary}: {found}"] if found not in (old, new) else []
            subject.recover(folder)
            outcome.litter += len(list(folder.rglob(".rapm-*"))) if folder.exists() else 0
            subject.act(folder)
            outcome.redone += subject.state(folder) == new
            shutil.rmtree(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def main() -> dict[str, Outcome]:
    """Kill every subject at all boundaries, and print the table."""
    outcomes = {subject.title: try_all(subject) for subject in SUBJECTS}
    rows = [
        [title, *map(str, (made.kills, made.old, made.new, len(made.neither), made.litter, made.redone))]
        for title, made in outcomes.items()
    ]
    columns = ["killed while committing", "kills", "old found", "new found", "neither", "litter left", "then redone"]
    Output().table("SIGKILL at every boundary: before, within and after each system call", columns, rows)
    return outcomes


if __name__ == "__main__":
    made = main().values()
    raise SystemExit(any(outcome.neither or outcome.litter or outcome.redone < outcome.kills for outcome in made))

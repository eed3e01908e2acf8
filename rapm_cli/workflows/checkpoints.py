"""The commits of a run: written, found again, and the old ones removed once a newer one is known to be good."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapm_cli.core.commit import commit, read_commit, remove_commit, sweep
from rapm_cli.core.errors import DamagedError, InputError
from rapm_cli.core.recovery import Health
from rapm_cli.workflows.rundir import BEGINNING, DAMAGED, Run
from rapm_cli.workflows.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2  # newest commits of training, and as many regular ones, to which training can go back
SETTINGS, STATE, LOG, TENSORS = "settings.json", "state.json", "log.jsonl", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Training after some iterations.

    Args:
        iterations: How many are done.
        parts: Of the trainer's state.
        health: How training has fared.
        log: The lines of the log so far.
        seconds: Spent on training so far, in all processes; not part of what must be equal.
    """

    iterations: int
    parts: "dict[str, dict[str, Tensor]]"
    health: Health
    log: bytes
    seconds: float

    def files(self, settings: Settings) -> dict[str, bytes]:
        """As the files of a commit."""
        from safetensors.torch import save

        state = {"iterations": self.iterations, "health": asdict(self.health)}
        files = {f"{name}{TENSORS}": save(tensors) for name, tensors in self.parts.items()}
        texts = {SETTINGS: settings.to_bytes(), STATE: json.dumps(state).encode(), LOG: self.log}
        return files | texts


class Checkpoints:
    """Those of one run, which this process holds.

    Args:
        run: The run.
        settings: What it is made from.
    """

    def __init__(self, run: Run, settings: Settings) -> None:
        self.run, self.settings = run, settings
        sweep(run.commits)

    def begin(self) -> str:
        """Commit the settings, unless the newest such commit holds the same; its name.

        The first one makes the folder a run.

        Raises:
            OSError: They cannot be written.
        """
        data, names = self.settings.to_bytes(), [folder.name for folder in self.run.settings_commits()]
        with contextlib.suppress(DamagedError, KeyError):
            if names and read_commit(self.run.commits / names[0])[1][SETTINGS] == data:
                return names[0]
        count = int(names[0].removeprefix(BEGINNING)) + 1 if names else 1
        name = f"{BEGINNING}{count:03d}"
        commit(self.run.commits / name, {SETTINGS: data}, fingerprint=self.settings.fingerprint, about=_about(0.0))
        for old in names:
            remove_commit(self.run.commits / old)
        return name

    def write(self, name: str, files: dict[str, bytes], parent: str, seconds: float) -> None:
        """Commit a checkpoint's files, and remove what is older than needed.

        Raises:
            OSError: They cannot be written.
        """
        folder = self.run.commits / name
        commit(folder, files, fingerprint=self.settings.fingerprint, parent=parent, about=_about(seconds))
        self._prune()

    def newest(self, at_most: int | None = None) -> tuple[Checkpoint | None, list[DamagedError]]:
        """The newest checkpoint that is what was written, and what is wrong with the newer ones.

        Args:
            at_most: Iterations that it may have done.
        """
        damage: list[DamagedError] = []
        for folder in self.run.training_commits():
            if at_most is not None and int(folder.name) > at_most:
                continue
            try:
                return self._read(folder), damage
            except DamagedError as error:
                damage.append(error)
        return None, damage

    def set_aside(self, damage: list[DamagedError]) -> None:
        """Move damaged commits out of the way, to be looked at by a person."""
        for error in damage:
            folder = error.place
            target = self.run.folder / DAMAGED / f"{folder.name}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)

    def drop_after(self, iterations: int) -> None:
        """Remove the checkpoints that training went back from."""
        for folder in self.run.training_commits():
            if int(folder.name) > iterations:
                remove_commit(folder)

    def _read(self, folder: Path) -> Checkpoint:
        from safetensors.torch import load

        manifest, files = read_commit(folder)
        if manifest.fingerprint != self.settings.fingerprint:
            raise DamagedError(folder, "it belongs to another run")
        state = json.loads(files[STATE])
        parts = {name.removesuffix(TENSORS): load(data) for name, data in files.items() if name.endswith(TENSORS)}
        seconds = float(manifest.about.get("seconds", 0.0))
        return Checkpoint(int(state["iterations"]), parts, Health(**state["health"]), files[LOG], seconds)

    def _prune(self) -> None:
        commits = self.run.training_commits()
        regular = [folder for folder in commits if int(folder.name) % self.settings.save_every == 0]
        for folder in commits:
            if folder not in (*commits[:KEPT], *regular[:KEPT]):
                remove_commit(folder)


def name_of(iterations: int) -> str:
    """The name of the commit after so many iterations."""
    return f"{iterations:08d}"


def read_settings(run: Run) -> tuple[Settings, list[DamagedError]]:
    """What a run was started with, from the first commit that is what was written, and what is wrong with others.

    Raises:
        InputError: None is.
    """
    damage: list[DamagedError] = []
    for folder in (*run.settings_commits(), *run.training_commits()):
        try:
            return Settings.from_bytes(read_commit(folder)[1][SETTINGS]), damage
        except DamagedError as error:
            damage.append(error)
        except KeyError:
            damage.append(DamagedError(folder, f"{SETTINGS} is missing"))
    found = "; ".join(error.message for error in damage)
    raise InputError(f"no commit of {run.folder} can be used: {found}", "start again with --output NEW")


def _about(seconds: float) -> dict[str, Any]:
    """What may differ between two commits of the same state."""
    from rapm_cli import __version__

    return {"rapm": __version__, "seconds": round(seconds, 3), "written": time.strftime("%Y-%m-%d %H:%M:%S")}

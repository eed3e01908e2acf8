"""The commits of a run: written, found again, and the old ones removed once a newer one is known to be good."""

import contextlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapm_cli.core.common.errors import DamagedError, InputError
from rapm_cli.core.storage.commit import Manifest, commit, read_commit, read_manifest, remove_commit
from rapm_cli.core.storage.files import sweep
from rapm_cli.core.training.recovery import Health
from rapm_cli.runs.run import BEGINNING, DAMAGED, OFFENDING, SETTINGS, WANTED, Run
from rapm_cli.runs.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2  # newest commits of training, and as many regular ones, to which training can go back
STATE, LOG, TENSORS = "state.json", "log.jsonl", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """Training after some iterations.

    Args:
        iterations: How many are done.
        parts: Of the trainer's state.
        health: How training has fared.
        log: The lines of the log so far.
        seconds: Spent on training so far, in all processes; not part of what must be equal.
        is_regular: Training may go back to it: made because it was time, not because a signal asked.
    """

    iterations: int
    parts: "dict[str, dict[str, Tensor]]"
    health: Health
    log: bytes
    seconds: float
    is_regular: bool = True

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
        for folder in (run.folder, run.commits, run.folder / OFFENDING):
            sweep(folder)

    def begin(self) -> str:
        """Commit the settings, unless the newest such commit holds the same; its name.

        The first one makes the folder a run.

        Raises:
            InputError: All its commits of training were made with others.
            OSError: They cannot be written.
        """
        self._check_commits()
        data, before, damage = self.settings.to_bytes(), self.run.settings_commits(), []
        for folder in before[:1]:
            try:
                if read_commit(folder)[1].get(SETTINGS) == data:
                    return folder.name
            except DamagedError as error:
                damage.append(error)
        count = int(before[0].name.removeprefix(BEGINNING)) + 1 if before else 1
        name = f"{BEGINNING}{count:03d}"
        about = _about(0.0) | dict(zip(WANTED, (self.settings.training.iterations, self.settings.samples), strict=True))
        commit(self.run.commits / name, {SETTINGS: data}, fingerprint=self.settings.fingerprint, about=about)
        self.set_aside(damage)
        for old in self.run.settings_commits()[1:]:
            remove_commit(old)
        return name

    def write(self, checkpoint: Checkpoint, parent: str) -> None:
        """Commit a checkpoint, and remove what is older than needed.

        Raises:
            OSError: It cannot be written.
        """
        about = _about(checkpoint.seconds) | {"regular": checkpoint.is_regular}
        folder, files = self.run.commits / name_of(checkpoint.iterations), checkpoint.files(self.settings)
        commit(folder, files, fingerprint=self.settings.fingerprint, parent=parent, about=about)
        self._prune()

    def newest(self) -> tuple[Checkpoint | None, list[DamagedError]]:
        """The newest checkpoint that is what was written, and what is wrong with the newer ones."""
        return self._first_good(self.run.training_commits())

    def to_go_back_to(self, at_most: int) -> tuple[Checkpoint | None, list[DamagedError]]:
        """The newest good checkpoint that was regular; where there is none, the newest good one. And the damage met.

        Args:
            at_most: Iterations that it may have done.
        """
        early = [folder for folder in self.run.training_commits() if int(folder.name) <= at_most]
        found, damage = self._first_good(early, only_regular=True)
        return (found, damage) if found else self._first_good(early)

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

    def _first_good(
        self, folders: list[Path], *, only_regular: bool = False
    ) -> tuple[Checkpoint | None, list[DamagedError]]:
        damage: list[DamagedError] = []
        for folder in folders:
            try:
                checkpoint = self._read(folder)
            except DamagedError as error:
                damage.append(error)
                continue
            if checkpoint.is_regular or not only_regular:
                return checkpoint, damage
        return None, damage

    def _check_commits(self) -> None:
        """Refuse a run that another version of rapm, or another folder's settings, would make begin from nothing."""
        manifests = [manifest for folder in self.run.training_commits() if (manifest := _manifest(folder))]
        if manifests and all(manifest.fingerprint != self.settings.fingerprint for manifest in manifests):
            raise InputError(
                f"the commits of {self.run.folder} were made with other settings than it says, or by another rapm: "
                f"{manifests[0].about.get('rapm')}",
                "resume it with that version, or begin another run: --new, without --resume",
            )

    def _read(self, folder: Path) -> Checkpoint:
        from safetensors.torch import load

        manifest, files = read_commit(folder, self.settings.fingerprint)
        state = json.loads(files[STATE])
        parts = {name.removesuffix(TENSORS): load(data) for name, data in files.items() if name.endswith(TENSORS)}
        seconds = float(manifest.about.get("seconds", 0.0))
        health, is_regular = Health(**state["health"]), bool(manifest.about.get("regular"))
        return Checkpoint(int(state["iterations"]), parts, health, files[LOG], seconds, is_regular)

    def _prune(self) -> None:
        commits = self.run.training_commits()
        regular = [folder for folder in commits if (made := _manifest(folder)) and made.about.get("regular")]
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


def _manifest(folder: Path) -> Manifest | None:
    with contextlib.suppress(DamagedError):
        return read_manifest(folder)
    return None


def _about(seconds: float) -> dict[str, Any]:
    """What may differ between two commits of the same state."""
    from rapm_cli import __version__

    return {"rapm": __version__, "seconds": round(seconds, 3), "written": time.strftime("%Y-%m-%d %H:%M:%S")}

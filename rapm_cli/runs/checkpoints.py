"""Checkpoints of a run: save, load, and remove old ones once a newer one has been read back. See `runs/README.md`."""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rapm_cli.core.common.errors import DamagedError, InputError
from rapm_cli.core.storage.commit import commit, read_commit, remove_commit, try_manifest
from rapm_cli.core.storage.files import sweep
from rapm_cli.core.training.recovery import Health
from rapm_cli.runs.run import DAMAGED, OFFENDING, SETTINGS, SETTINGS_PREFIX, TARGETS, Run
from rapm_cli.runs.settings import Settings

if TYPE_CHECKING:
    from torch import Tensor

KEPT = 2  # newest checkpoints, and as many newest regular ones
STATE, LOG, TENSORS = "state.json", "log.jsonl", ".safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """State of training after some iterations.

    Args:
        iterations: Number of iterations done.
        parts: State of the trainer: name of a part, then name of a tensor, to tensor.
        health: Skipped updates and returns so far.
        log: Lines of the log so far.
        seconds: Training time so far, over all processes that worked on the run.
        is_regular: True if --checkpoint-every caused it, so that training may go back to it; False for a signal.
    """

    iterations: int
    parts: "dict[str, dict[str, Tensor]]"
    health: Health
    log: bytes
    seconds: float
    is_regular: bool = True

    def files(self, settings: Settings) -> dict[str, bytes]:
        """Return the files of the checkpoint: name to content."""
        from safetensors.torch import save

        state = {"iterations": self.iterations, "health": asdict(self.health)}
        files = {f"{name}{TENSORS}": save(tensors) for name, tensors in self.parts.items()}
        texts = {SETTINGS: settings.to_bytes(), STATE: json.dumps(state).encode(), LOG: self.log}
        return files | texts


class Checkpoints:
    """Settings and checkpoints of a run that this process has locked.

    Args:
        run: The run.
        settings: Settings of the run.
    """

    def __init__(self, run: Run, settings: Settings) -> None:
        self.run, self.settings = run, settings
        for folder in (run.folder, run.checkpoints_dir, run.folder / OFFENDING):
            sweep(folder)

    def save_settings(self) -> str:
        """Save the settings, unless the newest saved ones are equal; return their folder's name.

        The first save makes the folder a run.

        Raises:
            InputError: All checkpoints were made with other settings.
            OSError: The settings cannot be written.
        """
        self._check_fingerprints()
        data, before, damage = self.settings.to_bytes(), self.run.settings_folders(), []
        for folder in before[:1]:
            try:
                if read_commit(folder)[1].get(SETTINGS) == data:
                    return folder.name
            except DamagedError as error:
                damage.append(error)
        count = int(before[0].name.removeprefix(SETTINGS_PREFIX)) + 1 if before else 1
        name = f"{SETTINGS_PREFIX}{count:03d}"
        about = _about(0.0) | dict(
            zip(TARGETS, (self.settings.training.iterations, self.settings.samples), strict=True)
        )
        target = self.run.checkpoints_dir / name
        commit(target, {SETTINGS: data}, fingerprint=self.settings.fingerprint, about=about)
        self.set_aside(damage)
        for old in self.run.settings_folders()[1:]:
            remove_commit(old)
        return name

    def save(self, checkpoint: Checkpoint, parent: str) -> None:
        """Save a checkpoint, and remove those that are no longer needed.

        Args:
            checkpoint: State of training.
            parent: Name of the folder that was saved before it.

        Raises:
            OSError: The checkpoint cannot be written.
        """
        about = _about(checkpoint.seconds) | {"regular": checkpoint.is_regular}
        folder = self.run.checkpoints_dir / checkpoint_name(checkpoint.iterations)
        files = checkpoint.files(self.settings)
        commit(folder, files, fingerprint=self.settings.fingerprint, parent=parent, about=about)
        self._prune()

    def load_newest(self) -> tuple[Checkpoint | None, list[DamagedError]]:
        """Return the newest sound checkpoint, or None, and the damage of the newer ones."""
        return self._first_sound(self.run.checkpoint_folders())

    def load_regular(self, at_most: int) -> tuple[Checkpoint | None, list[DamagedError]]:
        """Return the newest sound regular checkpoint, else the newest sound one, else None, and the damage found.

        Args:
            at_most: Highest number of iterations that the checkpoint may have.
        """
        early = [folder for folder in self.run.checkpoint_folders() if int(folder.name) <= at_most]
        found, damage = self._first_sound(early, only_regular=True)
        return (found, damage) if found else self._first_sound(early)

    def set_aside(self, damage: list[DamagedError]) -> None:
        """Move damaged folders to `damaged/`, where a person can look at them."""
        for error in damage:
            folder = error.place
            target = self.run.folder / DAMAGED / f"{folder.name}-{time.time_ns()}"
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)

    def remove_after(self, iterations: int) -> None:
        """Remove the checkpoints with more iterations, from which training went back."""
        for folder in self.run.checkpoint_folders():
            if int(folder.name) > iterations:
                remove_commit(folder)

    def _first_sound(
        self, folders: list[Path], *, only_regular: bool = False
    ) -> tuple[Checkpoint | None, list[DamagedError]]:
        damage: list[DamagedError] = []
        for folder in folders:
            try:
                checkpoint = self._load(folder)
            except DamagedError as error:
                damage.append(error)
                continue
            if checkpoint.is_regular or not only_regular:
                return checkpoint, damage
        return None, damage

    def _check_fingerprints(self) -> None:
        """Refuse a run whose checkpoints all have another fingerprint, because training would start at 0 again."""
        manifests = [manifest for folder in self.run.checkpoint_folders() if (manifest := try_manifest(folder))]
        if manifests and all(manifest.fingerprint != self.settings.fingerprint for manifest in manifests):
            raise InputError(
                f"the checkpoints of {self.run.folder} were made with other settings than those saved in it, or by "
                f"another version of rapm: {manifests[0].about.get('rapm')}",
                "resume it with that version, or begin another run: --new, without --resume",
            )

    def _load(self, folder: Path) -> Checkpoint:
        from safetensors.torch import load

        manifest, files = read_commit(folder, self.settings.fingerprint)
        state = json.loads(files[STATE])
        parts = {name.removesuffix(TENSORS): load(data) for name, data in files.items() if name.endswith(TENSORS)}
        seconds = float(manifest.about.get("seconds", 0.0))
        health, is_regular = Health(**state["health"]), bool(manifest.about.get("regular"))
        return Checkpoint(int(state["iterations"]), parts, health, files[LOG], seconds, is_regular)

    def _prune(self) -> None:
        folders = self.run.checkpoint_folders()
        regular = [folder for folder in folders if (made := try_manifest(folder)) and made.about.get("regular")]
        for folder in folders:
            if folder not in (*folders[:KEPT], *regular[:KEPT]):
                remove_commit(folder)


def checkpoint_name(iterations: int) -> str:
    """Return the folder name of the checkpoint after a number of iterations."""
    return f"{iterations:08d}"


def read_settings(run: Run) -> tuple[Settings, list[DamagedError]]:
    """Return the settings of a run from the first sound folder that has them, and the damage of the others.

    Raises:
        InputError: No folder is sound.
    """
    damage: list[DamagedError] = []
    for folder in (*run.settings_folders(), *run.checkpoint_folders()):
        try:
            return Settings.from_bytes(read_commit(folder)[1][SETTINGS]), damage
        except DamagedError as error:
            damage.append(error)
        except KeyError:
            damage.append(DamagedError(folder, f"{SETTINGS} is missing"))
    found = "; ".join(error.message for error in damage)
    raise InputError(f"no checkpoint of {run.folder} can be used: {found}", "start again with --output NEW")


def _about(seconds: float) -> dict[str, Any]:
    """Return the part of a manifest that may differ between two checkpoints of the same state."""
    from rapm_cli import __version__

    return {"rapm": __version__, "seconds": round(seconds, 3), "written": time.strftime("%Y-%m-%d %H:%M:%S")}

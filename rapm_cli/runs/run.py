"""Run: the folder of one distillation, and how commands find one among all runs. See `runs/README.md`."""

import contextlib
import json
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases.places import DEMO_LORA, runs_dir
from rapm_cli.core.common.errors import UNHARMED, DamagedError, DiskError, InputError, Stopped
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.commit import Manifest, read_commit, read_manifest, verify
from rapm_cli.core.storage.files import TEMPORARY, file_sha256, make_folder, regular_file, replace_file
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import parse_lora_header
from rapm_cli.runs.lock import HOLDER, LOCK, holder

LORA, LOG, RESULT, SHEET, PREVIEWS = "lora.safetensors", "metrics.jsonl", "result.json", "sheet.png", "previews"
CHECKPOINTS, DAMAGED, OFFENDING, DIVERGED = "commits", "damaged", "offending", "diverged.json"
SETTINGS = "settings.json"  # in every checkpoint
SETTINGS_PREFIX = "settings-"  # of the names of folders that hold settings alone
TARGETS = ("iterations", "samples")  # how much a finished run has done; in the manifest of its settings
DIFFUSERS_FORM = "-diffusers.safetensors"  # end of the name of an exported LoRA


@dataclass(frozen=True)
class Run:
    """A run folder; the properties name its files."""

    folder: Path

    @property
    def lora(self) -> Path:
        """The distilled LoRA, written when training ends."""
        return self.folder / LORA

    @property
    def sheet(self) -> Path:
        """Contact sheet of teacher, base and student."""
        return self.folder / SHEET

    @property
    def log(self) -> Path:
        """Losses of every iteration, one JSON object a line."""
        return self.folder / LOG

    @property
    def previews(self) -> Path:
        """Folder of the contact sheets made during training."""
        return self.folder / PREVIEWS

    @property
    def checkpoints_dir(self) -> Path:
        """Folder of the checkpoints; a run is resumed from these alone."""
        return self.folder / CHECKPOINTS

    @property
    def is_begun(self) -> bool:
        """True once settings or a checkpoint were saved in the folder."""
        return bool(self.settings_folders() or self.checkpoint_folders())

    @property
    def has_lora(self) -> bool:
        """True once training has ended."""
        return self.lora.is_file()

    @property
    def is_finished(self) -> bool:
        """True once everything that the newest settings ask for is done and written."""
        try:
            done = self.result()
        except InputError:
            return False
        return self.has_lora and bool(done) and all(done.get(name) == count for name, count in self._targets().items())

    @property
    def has_diverged(self) -> bool:
        """True if training diverged; it would diverge again."""
        return (self.folder / DIVERGED).is_file()

    @property
    def iterations_saved(self) -> int:
        """Number of iterations in the newest checkpoint, which is not verified."""
        folders = self.checkpoint_folders()
        return int(folders[0].name) if folders else 0

    @property
    def resume_command(self) -> str:
        """The command that resumes the run."""
        folder = self.folder.resolve()
        name = folder.name if folder.parent == runs_dir().resolve() else str(folder)
        return f"rapm distill --resume {shlex.quote(name)}"

    @property
    def next_step(self) -> str:
        """What continues an unfinished run: its process, if one trains it, else the command that resumes it."""
        trainer = holder(self.folder)
        return f"wait for {trainer}, which trains it" if trainer else f"resume with: {self.resume_command}"

    def checkpoint_folders(self) -> list[Path]:
        """List the checkpoints, newest first, without verifying them; a name is the number of iterations done."""
        return [folder for folder in self._folders() if folder.name.isdecimal()]

    def settings_folders(self) -> list[Path]:
        """List the folders that hold settings alone, newest first, without verifying them."""
        named = [folder for folder in self._folders() if folder.name.startswith(SETTINGS_PREFIX)]
        return [folder for folder in named if folder.name.removeprefix(SETTINGS_PREFIX).isdecimal()]

    def verify_all(self) -> Iterator[tuple[str, Manifest | None, str]]:
        """Verify all settings and checkpoints, oldest first.

        Yields:
            Name, manifest and damage; the damage is empty for a sound one.
        """
        for folder in (*reversed(self.settings_folders()), *reversed(self.checkpoint_folders())):
            try:
                yield folder.name, verify(folder), ""
            except DamagedError as error:
                if folder.exists():  # else a process that works on the run has removed it meanwhile
                    yield folder.name, None, error.damage

    def _folders(self) -> list[Path]:
        return sorted(self.checkpoints_dir.iterdir(), reverse=True) if self.checkpoints_dir.is_dir() else []

    def _targets(self) -> dict[str, Any]:
        """Return how much the newest settings ask for; empty if they cannot be read."""
        with contextlib.suppress(DamagedError, IndexError):
            about = read_manifest(self.settings_folders()[0]).about
            return {name: about[name] for name in TARGETS if name in about}
        return {}

    def raw_settings(self) -> dict[str, Any]:
        """Return the newest settings as unchecked JSON, which needs no torch; empty if there are none."""
        for folder in (*self.settings_folders(), *self.checkpoint_folders()):
            with contextlib.suppress(DamagedError, KeyError, ValueError, RecursionError):
                record = json.loads(read_commit(folder)[1][SETTINGS])
                return record if isinstance(record, dict) else {}
        return {}

    def verified_lora(self) -> Path:
        """Return the path of the distilled LoRA after comparing its sha256 with the result's.

        Raises:
            InputError: The file differs from the one that was written.
        """
        written, remedy = self.result().get("lora_sha256"), f"make it again: {self.resume_command}"
        if written and file_sha256(regular_file(self.lora, remedy)) != written:
            raise InputError(f"{self.lora} is damaged: its sha256 differs", remedy)
        return self.lora

    def is_complete(self, iterations: int, samples: int) -> bool:
        """Return True if the run is finished, with an undamaged LoRA and exactly these targets.

        Args:
            iterations: Number of training iterations.
            samples: Number of prompts in the comparison at the end.
        """
        if not self.is_finished:
            return False
        with contextlib.suppress(InputError):
            result, _ = self.result(), self.verified_lora()
            return bool(result.get("iterations") == iterations and result.get("samples") == samples)
        return False

    @contextlib.contextmanager
    def explain_stops(self) -> Iterator[None]:
        """Add what is saved, and the command that resumes, to a stop inside the context, once the run is begun."""
        try:
            yield
        except Stopped as stopped:
            if self.is_begun:
                stopped.remedy = f"resume with: {self.resume_command}"
                if stopped.message == UNHARMED:
                    total = (self.raw_settings().get("training") or {}).get("iterations", "?")
                    stopped.message = f"{self.iterations_saved} of {total} iterations are saved"
            raise

    def result(self) -> dict[str, Any]:
        """Read the result of a finished run; empty if there is none.

        Raises:
            InputError: The file cannot be read.
        """
        path = self.folder / RESULT
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON", "remove it, and resume the run") from error
        return record if isinstance(record, dict) else {}

    def write_result(self, record: dict[str, Any]) -> None:
        """Write the result, which marks the run as finished."""
        replace_file(self.folder / RESULT, (json.dumps(record, indent=2) + "\n").encode())

    def delete(self) -> None:
        """Remove the run folder, and the links to it among the runs."""
        place = self.folder.resolve()
        links = [path for path in runs_dir().glob("*") if path.is_symlink() and path.resolve() == place]
        for link in links:
            link.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    def mark_unfinished(self) -> None:
        """Remove the marks of a finished run and of one that diverged."""
        for name in (RESULT, DIVERGED):
            (self.folder / name).unlink(missing_ok=True)

    def mark_diverged(self, reason: str) -> None:
        """Mark the run as diverged, with the reason why training cannot continue."""
        with contextlib.suppress(OSError):  # on a full disk the mark is lost; the user reads the reason anyway
            replace_file(self.folder / DIVERGED, (json.dumps({"reason": reason}) + "\n").encode())


def new_run(base: str, folder: Path | None) -> Run:
    """Make a new run folder.

    Args:
        base: Name of the base, which begins the folder's name.
        folder: Folder that the user named, which is linked among the runs; None for one named by base and time.

    Raises:
        InputError: The named folder exists and is not empty.
        DiskError: The folder cannot be made.
    """
    name, count = f"{base.replace('/', '--')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", 1
    while (usual := runs_dir() / (name if count == 1 else f"{name}-{count}")).exists():  # by another machine's process
        count += 1
    path = folder.resolve() if folder else usual
    try:
        make_folder(path)
        if any(not _is_leftover(there) for there in path.iterdir()):
            raise InputError(f"{path} is not empty", "give --output a new folder")
    except OSError as error:
        raise DiskError.of(error, path) from error
    if folder:
        with contextlib.suppress(OSError):  # where links are not allowed, the run is found by its path alone
            usual.parent.mkdir(parents=True, exist_ok=True)
            usual.symlink_to(path, target_is_directory=True)
    return Run(path)


def _is_leftover(path: Path) -> bool:
    """Return True for files of a process that was killed before it saved the run's settings."""
    is_ours = path.name in (LOCK, HOLDER) or path.name.startswith(TEMPORARY)
    return is_ours or (path.name == CHECKPOINTS and path.is_dir() and all(map(_is_leftover, path.iterdir())))


def all_runs(place: Path | None = None) -> list[Run]:
    """List the runs in a folder, the last changed first.

    Args:
        place: Folder of runs; None for the usual one.
    """
    dated: dict[Path, float] = {}
    place = place or runs_dir()
    for folder in place.iterdir() if place.is_dir() else ():
        with contextlib.suppress(OSError):  # another user's, or on a disk that was removed
            if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
                dated[folder.resolve()] = _changed_at(folder)
    return [Run(folder) for folder in sorted(dated, key=dated.__getitem__, reverse=True)]


def _changed_at(folder: Path) -> float:
    checkpoints = folder / CHECKPOINTS
    return max(folder.stat().st_mtime, checkpoints.stat().st_mtime if checkpoints.exists() else 0.0)


def all_loras() -> list[Path]:
    """List the LoRAs of all runs, newest first."""
    loras = (run.lora for run in all_runs() if run.has_lora)
    return sorted(loras, key=lambda path: path.stat().st_mtime, reverse=True)


def newest_run_with_lora(base: str | None = None, identity: str = "") -> Run | None:
    """Return the run whose LoRA was written last; None if there is none.

    Args:
        base: Name of the base that the LoRA must be for; None for any.
        identity: Identity of that base's weights; a LoRA for equal weights counts too, whatever their name was.
    """

    def is_for(recipe: dict[str, Any]) -> bool:
        return recipe.get("base") == base or (bool(identity) and recipe.get("base_identity") == identity)

    return next((Run(path.parent) for path in all_loras() if base is None or is_for(_recipe_of(path))), None)


def newest_unfinished_run() -> Run:
    """Return the last changed run that can be resumed.

    Raises:
        InputError: There is none.
    """
    run = next(unfinished_runs(), None)
    if run is None:
        raise InputError(
            f"there is no unfinished run in {runs_dir()}", "name one, or start one: rapm distill --base demo"
        )
    return run


def unfinished_runs() -> Iterator[Run]:
    """Yield the runs that are neither finished nor diverged, the last changed first."""
    return (run for run in all_runs() if run.is_begun and not run.is_finished and not run.has_diverged)


def base_of(lora: Path) -> str | None:
    """Return the name of the base in a LoRA file's header; None if the file cannot be read or names none."""
    base = _recipe_of(lora).get("base")
    return None if base is None else str(base)


def _recipe_of(lora: Path) -> dict[str, Any]:
    """Return the recipe in a LoRA file's header; empty if the file cannot be read."""
    with contextlib.suppress(InputError):
        return parse_lora_header(lora, read_header(lora))[2]
    return {}


def newest_lora(reporter: Reporter) -> Path:
    """Return the LoRA of the newest run that has one; where there is no run, the one that ships with the demo base.

    Args:
        reporter: Receives a line if there is no run.

    Raises:
        InputError: All runs are unfinished, or the LoRA is damaged.
    """
    run = newest_run_with_lora()
    if run is None and (unfinished := next(unfinished_runs(), None)):
        raise InputError(f"no run has a LoRA yet, not {unfinished.folder}", unfinished.next_step)
    if run is None:
        reporter.say("there is no run yet: this is the LoRA that ships with demo")
        return DEMO_LORA
    return run.verified_lora()


def find_run(name: str) -> Run | None:
    """Return the run with this path or name; None if there is none."""
    for path in (Path(name), runs_dir() / name) if name else ():
        with contextlib.suppress(OSError, ValueError):  # no file can have such a name
            if Run(path).is_begun or Run(path).has_lora:
                return Run(path.resolve())
    return None


def find_lora(name: str) -> Path:
    """Return the path of a LoRA file.

    Args:
        name: Path of the file, of a run folder or of an export's folder, or the name of a run.

    Raises:
        InputError: There is no such LoRA, or it is damaged.
    """
    with contextlib.suppress(OSError, ValueError):
        if name and Path(name).exists() and not Path(name).is_dir():
            home = Run(Path(name).parent)
            return home.verified_lora() if home.is_begun and home.lora == Path(name) else Path(name)
        if name and (exported := sorted(Path(name).glob(f"*{DIFFUSERS_FORM}"))):
            return exported[0]
    run = find_run(name)
    if run and run.has_lora:
        return run.verified_lora()
    if run:
        raise InputError(f"run {run.folder} has no LoRA yet", run.next_step)
    raise InputError(f"{name!r} is neither a LoRA file nor a run", f"runs are in {runs_dir()}")

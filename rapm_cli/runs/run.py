"""The folder of one distillation, and finding it among all runs."""

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

from rapm_cli.bases.places import runs_dir
from rapm_cli.core.common.errors import UNHARMED, DamagedError, DiskError, InputError, Stopped
from rapm_cli.core.storage.commit import Manifest, read_commit, read_manifest, verify
from rapm_cli.core.storage.files import TEMPORARY, file_sha256, make_folder, regular_file, replace_file
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import parse_lora_header
from rapm_cli.runs.lock import HOLDER, LOCK

LORA, LOG, RESULT, SHEET, PREVIEWS = "lora.safetensors", "metrics.jsonl", "result.json", "sheet.png", "previews"
COMMITS, DAMAGED, OFFENDING, DIVERGED = "commits", "damaged", "offending", "diverged.json"
DIFFUSERS_FORM = "-diffusers.safetensors"  # how the name of a LoRA ends that lies in an export
WANTED = ("iterations", "samples")  # what a finished run has done; kept with its settings, read without torch
BEGINNING = "settings-"  # of the names of commits that hold settings alone
SETTINGS = "settings.json"  # in every commit


@dataclass(frozen=True)
class Run:
    """A run folder."""

    folder: Path

    @property
    def lora(self) -> Path:
        """The distilled LoRA, there once training has ended."""
        return self.folder / LORA

    @property
    def sheet(self) -> Path:
        """Contact sheet: teacher, base and student."""
        return self.folder / SHEET

    @property
    def log(self) -> Path:
        """Losses of every iteration, one JSON object a line."""
        return self.folder / LOG

    @property
    def previews(self) -> Path:
        """Folder of the sheets that were drawn during training."""
        return self.folder / PREVIEWS

    @property
    def commits(self) -> Path:
        """Folder of the commits, from which alone a run is resumed."""
        return self.folder / COMMITS

    @property
    def is_begun(self) -> bool:
        """True for a folder in which something was committed."""
        return bool(self.settings_commits() or self.training_commits())

    @property
    def has_lora(self) -> bool:
        """True once training has ended."""
        return self.lora.is_file()

    @property
    def is_finished(self) -> bool:
        """True once all that its newest settings want is done and written."""
        try:
            done = self.result()
        except InputError:
            return False
        return self.has_lora and bool(done) and all(done.get(name) == count for name, count in self._wanted().items())

    @property
    def has_diverged(self) -> bool:
        """True where training ended so, and would again."""
        return (self.folder / DIVERGED).is_file()

    def training_commits(self) -> list[Path]:
        """Folders of the commits of training, named by the iterations done, the newest first; not looked into."""
        return [folder for folder in self._commits() if folder.name.isdecimal()]

    @property
    def iterations_saved(self) -> int:
        """Iterations of the newest commit of training; not looked into."""
        commits = self.training_commits()
        return int(commits[0].name) if commits else 0

    def settings_commits(self) -> list[Path]:
        """Folders of the commits that hold settings alone, the newest first; not looked into."""
        named = [folder for folder in self._commits() if folder.name.startswith(BEGINNING)]
        return [folder for folder in named if folder.name.removeprefix(BEGINNING).isdecimal()]

    def survey(self) -> Iterator[tuple[str, Manifest | None, str]]:
        """Name, manifest and damage of every commit, the oldest first; the damage is empty where it verifies."""
        for folder in (*reversed(self.settings_commits()), *reversed(self.training_commits())):
            try:
                yield folder.name, verify(folder), ""
            except DamagedError as error:
                if folder.exists():  # else the run is at work, and has removed it meanwhile
                    yield folder.name, None, error.damage

    def _commits(self) -> list[Path]:
        return sorted(self.commits.iterdir(), reverse=True) if self.commits.is_dir() else []

    def _wanted(self) -> dict[str, Any]:
        """What the newest settings ask for; empty where that cannot be read."""
        with contextlib.suppress(DamagedError, IndexError):
            about = read_manifest(self.settings_commits()[0]).about
            return {name: about[name] for name in WANTED if name in about}
        return {}

    def written_settings(self) -> dict[str, Any]:
        """The newest settings as they are written, unchecked, for which no library is needed; empty where none are."""
        for folder in (*self.settings_commits(), *self.training_commits()):
            with contextlib.suppress(DamagedError, KeyError, ValueError, RecursionError):
                record = json.loads(read_commit(folder)[1][SETTINGS])
                return record if isinstance(record, dict) else {}
        return {}

    def verified_lora(self) -> Path:
        """The distilled LoRA, once it has been found to be what was written.

        Raises:
            InputError: It is not.
        """
        written, remedy = self.result().get("lora_sha256"), f"make it again: {self.resume_command}"
        if written and file_sha256(regular_file(self.lora, remedy)) != written:
            raise InputError(f"{self.lora} is damaged: its sha256 differs", remedy)
        return self.lora

    def is_complete(self, iterations: int, samples: int) -> bool:
        """True for a finished run with a sound LoRA that has done just that much, and compared on as many prompts."""
        if not self.is_finished:
            return False
        with contextlib.suppress(InputError):
            result, _ = self.result(), self.verified_lora()
            return bool(result.get("iterations") == iterations and result.get("samples") == samples)
        return False

    @property
    def resume_command(self) -> str:
        """What to type to go on with it."""
        folder = self.folder.resolve()
        name = folder.name if folder.parent == runs_dir().resolve() else str(folder)
        return f"rapm distill --resume {shlex.quote(name)}"

    @contextlib.contextmanager
    def explain_stops(self) -> Iterator[None]:
        """Inside, a stop says what is saved of a run that is begun, and the command that goes on."""
        try:
            yield
        except Stopped as stopped:
            if self.is_begun:
                stopped.remedy = f"resume with: {self.resume_command}"
                if stopped.message == UNHARMED:
                    total = (self.written_settings().get("training") or {}).get("iterations", "?")
                    stopped.message = f"{self.iterations_saved} of {total} iterations are saved"
            raise

    def result(self) -> dict[str, Any]:
        """The comparison at the end of the run; empty if it was skipped.

        Raises:
            InputError: It cannot be read.
        """
        path = self.folder / RESULT
        if not path.is_file():
            return {}
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON", "remove it, and resume the run") from error
        return record if isinstance(record, dict) else {}

    def finish(self, record: dict[str, Any]) -> None:
        """Write the result, which makes the run a finished one."""
        replace_file(self.folder / RESULT, (json.dumps(record, indent=2) + "\n").encode())

    def discard(self) -> None:
        """Remove it, and the link to it among the runs."""
        place = self.folder.resolve()
        links = [path for path in runs_dir().glob("*") if path.is_symlink() and path.resolve() == place]
        for link in links:
            link.unlink(missing_ok=True)
        shutil.rmtree(place, ignore_errors=True)

    def reopen(self) -> None:
        """Make a finished run, or one that diverged, an unfinished one."""
        for name in (RESULT, DIVERGED):
            (self.folder / name).unlink(missing_ok=True)

    def mark_diverged(self, reason: str) -> None:
        """Write why training cannot go on."""
        with contextlib.suppress(OSError):  # of a full disk; the reason is told in any case
            replace_file(self.folder / DIVERGED, (json.dumps({"reason": reason}) + "\n").encode())


def new_run(base: str, folder: Path | None) -> Run:
    """A fresh run folder, named by base and time unless the user named one, which is then linked among the runs.

    Raises:
        InputError: The named folder exists and is not empty.
        DiskError: It cannot be made.
    """
    name, count = f"{base.replace('/', '--')}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}", 1
    while (usual := runs_dir() / (name if count == 1 else f"{name}-{count}")).exists():  # of another machine's process
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
    """True for what a process leaves that was killed before its first commit."""
    is_ours = path.name in (LOCK, HOLDER) or path.name.startswith(TEMPORARY)
    return is_ours or (path.name == COMMITS and path.is_dir() and all(map(_is_leftover, path.iterdir())))


def all_runs(place: Path | None = None) -> list[Run]:
    """All runs, or those in another folder than the usual, the one that was worked on last first."""
    dated: dict[Path, float] = {}
    place = place or runs_dir()
    for folder in place.iterdir() if place.is_dir() else ():
        with contextlib.suppress(OSError):  # another user's, or on a disk that is gone
            if folder.is_dir() and os.access(folder, os.R_OK | os.X_OK):
                dated[folder.resolve()] = _changed_at(folder)
    return [Run(folder) for folder in sorted(dated, key=dated.__getitem__, reverse=True)]


def _changed_at(folder: Path) -> float:
    commits = folder / COMMITS
    return max(folder.stat().st_mtime, commits.stat().st_mtime if commits.exists() else 0.0)


def all_loras() -> list[Path]:
    """The LoRAs of all runs that have one, the newest first."""
    loras = (run.lora for run in all_runs() if run.has_lora)
    return sorted(loras, key=lambda path: path.stat().st_mtime, reverse=True)


def newest_run(base: str | None = None) -> Run | None:
    """The run whose LoRA was written last, of a base if one is named; None where there is none."""
    return next((Run(path.parent) for path in all_loras() if base is None or base_of(path) == base), None)


def newest_unfinished() -> Run:
    """The run worked on last of those that are not finished and have not diverged.

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
    """The runs that can be gone on with, the one that was worked on last first."""
    return (run for run in all_runs() if run.is_begun and not run.is_finished and not run.has_diverged)


def base_of(lora: Path) -> str | None:
    """The base that a LoRA file says it was distilled from; None where it cannot be read or does not say."""
    try:
        header = read_header(lora)
        base = parse_lora_header(lora, header)[2].get("base")
    except InputError:
        return None
    return None if base is None else str(base)


def newest_lora() -> Path:
    """The LoRA of the newest run that has one.

    Raises:
        InputError: There is none yet.
    """
    run = newest_run()
    if run is None and (unfinished := next(unfinished_runs(), None)):
        raise InputError(f"no run has a LoRA yet, not {unfinished.folder}", f"resume with: {unfinished.resume_command}")
    if run is None:
        raise InputError("there is no run yet", "name a LoRA file, or run: rapm distill --base demo")
    return run.verified_lora()


def find_run(name: str) -> Run | None:
    """The run of a path to its folder, or of its name; None where there is none."""
    for path in (Path(name), runs_dir() / name) if name else ():
        with contextlib.suppress(OSError, ValueError):  # no file has such a name
            if Run(path).is_begun or Run(path).has_lora:
                return Run(path.resolve())
    return None


def find_lora(name: str) -> Path:
    """The LoRA file of a path to one, to a run folder, to an export's folder, or of a run's name.

    Raises:
        InputError: There is none.
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
        raise InputError(f"run {run.folder} has no LoRA yet", f"resume with: {run.resume_command}")
    raise InputError(f"{name!r} is neither a LoRA file nor a run", f"runs are in {runs_dir()}")

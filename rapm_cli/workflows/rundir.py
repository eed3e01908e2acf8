"""The folder of one distillation: settings, log, LoRA, comparison and contact sheet."""

import contextlib
import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import DiskError, InputError
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import lora_facts
from rapm_cli.workflows.places import runs_dir

CONFIG, LORA, METRICS, RESULT, SHEET = "config.json", "lora.safetensors", "metrics.jsonl", "result.json", "sheet.png"


@dataclass(frozen=True)
class Run:
    """A run folder; a run with a LoRA is a finished one."""

    folder: Path

    @property
    def lora(self) -> Path:
        """The distilled LoRA."""
        return self.folder / LORA

    @property
    def sheet(self) -> Path:
        """Contact sheet: teacher, base and student."""
        return self.folder / SHEET

    @property
    def is_finished(self) -> bool:
        """True once the LoRA is written."""
        return self.lora.is_file()

    def config(self) -> dict[str, Any]:
        """The settings that the run was started with.

        Raises:
            InputError: They cannot be read.
        """
        return self._read(CONFIG)

    def result(self) -> dict[str, Any]:
        """The comparison at the end of the run; empty if it was skipped."""
        return self._read(RESULT) if (self.folder / RESULT).is_file() else {}

    def write(self, name: str, record: dict[str, Any]) -> None:
        """Write one JSON file."""
        (self.folder / name).write_text(json.dumps(record, indent=2) + "\n")

    def append(self, record: dict[str, Any]) -> None:
        """Add one line to the log of losses."""
        with (self.folder / METRICS).open("a") as log:
            log.write(json.dumps(record) + "\n")

    def _read(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            record: dict[str, Any] = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{path} cannot be read as JSON", "give the folder of a run, or a LoRA file") from error
        return record


def new_run(base: str, folder: Path | None) -> Run:
    """A fresh run folder, named by base and time unless the user named one, which is then linked among the runs.

    Raises:
        InputError: The named folder exists and is not empty.
        DiskError: It cannot be made.
    """
    usual = runs_dir() / f"{Path(base).name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    path = folder or usual
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InputError(f"{path} is not empty", "give --output a new folder")
    except OSError as error:
        raise DiskError.of(error, path) from error
    if folder:
        with contextlib.suppress(OSError):  # where links are not allowed, the run is found by its path alone
            usual.parent.mkdir(parents=True, exist_ok=True)
            usual.symlink_to(path.resolve(), target_is_directory=True)
    return Run(path)


def all_loras() -> list[Path]:
    """The LoRAs of all finished runs, the newest first."""
    runs = [Run(folder.resolve()) for folder in runs_dir().iterdir()] if runs_dir().is_dir() else []
    return sorted((run.lora for run in runs if run.is_finished), key=lambda path: path.stat().st_mtime, reverse=True)


def newest_run(base: str | None = None) -> Run | None:
    """The finished run that was written last, of a base if one is named; None where there is none."""
    return next((Run(path.parent) for path in all_loras() if base is None or base_of(path) == base), None)


def base_of(lora: Path) -> str | None:
    """The base that a LoRA file says it was distilled from; None where it cannot be read or does not say."""
    try:
        header = read_header(lora)
        base = lora_facts(lora, header.metadata, list(header.tensors))[2].get("base")
    except InputError:
        return None
    return None if base is None else str(base)


def newest_lora() -> Path:
    """The LoRA of the newest finished run.

    Raises:
        InputError: There is no run yet.
    """
    run = newest_run()
    if run is None:
        raise InputError("there is no run yet", "name a LoRA file, or run: rapm distill --base demo")
    return run.lora


def find_lora(name: str) -> Path:
    """The LoRA file of a path to one, to a run folder, or of a run's name.

    Raises:
        InputError: There is none.
    """
    for path in (Path(name), runs_dir() / name) if name else ():
        with contextlib.suppress(OSError):  # no file has such a name
            if path.is_file():
                return path
            if Run(path).is_finished:
                return Run(path).lora
    raise InputError(f"{name!r} is neither a LoRA file nor a finished run", f"runs are in {runs_dir()}")

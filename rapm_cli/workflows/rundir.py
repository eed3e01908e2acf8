"""The folder of one distillation: settings, log, LoRA, comparison and contact sheet."""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError
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
    """A fresh run folder, named by base and time unless the user named one.

    Raises:
        InputError: The named folder exists and is not empty, or cannot be made.
    """
    path = folder or runs_dir() / f"{Path(base).name}-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise InputError(f"{path} is not empty", "give --output a new folder")
    except OSError as error:
        raise InputError(f"{path} cannot be made: {error.strerror}", "give --output another folder") from error
    return Run(path)


def all_loras() -> list[Path]:
    """The LoRAs of all finished runs, the newest first."""
    runs = map(Run, runs_dir().iterdir()) if runs_dir().is_dir() else []
    return sorted((run.lora for run in runs if run.is_finished), key=lambda path: path.stat().st_mtime, reverse=True)


def newest_run(base: str | None = None) -> Run | None:
    """The finished run that was written last, of a base if one is named; None where there is none."""
    runs = (Run(path.parent) for path in all_loras())
    return next((run for run in runs if base is None or run.config()["base"] == base), None)


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
    for path in (Path(name), runs_dir() / name):
        if path.is_file():
            return path
        if Run(path).is_finished:
            return Run(path).lora
    raise InputError(f"{name} is neither a LoRA file nor a finished run", f"runs are in {runs_dir()}")

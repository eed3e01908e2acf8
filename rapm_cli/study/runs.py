"""The runs of studies: ordinary runs, found by their settings, so that rows and files share them."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.places import study_runs_dir
from rapm_cli.core.common.errors import ConfigError, DiskError, DivergedError, LockedError, RapmError, Stopped
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.storage.commit import remove_commit
from rapm_cli.distill.distill import distill
from rapm_cli.runs import signals
from rapm_cli.runs.lock import POLL_SECONDS
from rapm_cli.runs.run import DIVERGED, Run
from rapm_cli.runs.settings import Settings

REVISION = 1  # revision of what training computes; a new one leaves all earlier runs unused
WAYS = ("vram", "compile", "channels_last")  # options that change the last bits and are no part of the fingerprint


def run_of(settings: Settings) -> Run:
    """Return the run of these settings, whether it is begun or not."""
    machine = hashlib.sha256(f"{settings.machine} {REVISION}".encode()).hexdigest()[:8]
    usual = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    ways = {name: getattr(settings.training, name) for name in WAYS}
    named = [f"{name.replace('_', '-')}-{value}".lower() for name, value in ways.items() if value != usual[name]]
    return Run(study_runs_dir() / "-".join([settings.fingerprint, machine, str(settings.training.iterations), *named]))


def finish(
    settings: Settings, base: Base, device: torch.device, command: str, reporter: Reporter, *, is_patient: bool
) -> str:
    """Finish the run of these settings; a finished run is left as it is.

    Args:
        settings: Settings of the run, without a comparison at its end.
        base: Base of the settings.
        device: Device to compute on.
        command: Command that resumes the study.
        reporter: Reporter of progress.
        is_patient: Whether to wait for another process that works on the run.

    Returns:
        Reason for a missing LoRA: training diverged, or the settings are invalid. Empty if there is a LoRA.

    Raises:
        LockedError: Another process works on the run.
        RapmError: Something failed that would fail another row, too: a full disk, or memory.
        Stopped: A signal came; finished iterations are kept.
    """
    run, is_told = run_of(settings), False
    try:
        with _explained(run, command):
            while not (run.has_diverged or run.is_complete(settings.training.iterations, settings.samples)):
                try:
                    distill(run, settings, base, device=device, is_strict=False, reporter=reporter)
                    break
                except LockedError as error:
                    if not is_patient:
                        raise
                    if not is_told:
                        reporter.say(f"waiting: {error.message}")
                    is_told = True
                    signals.pause(POLL_SECONDS)
    except DivergedError as error:
        return _diverged(error.message)
    except ConfigError as error:
        return f"failed: {error.message}"
    finally:
        if run.is_finished or run.has_diverged:
            _thin(run)
    return _diverged(_reason(run)) if run.has_diverged else ""


def seconds_of(run: Run) -> dict[str, Any]:
    """Return the seconds of each phase of a finished run."""
    seconds: dict[str, Any] = run.result().get("seconds", {})
    return seconds


def evaluations_of(run: Run) -> float:
    """Return the network evaluations of a run's training, each of one image; a pass of half the network is half."""
    passes = [json.loads(line).get("passes", {}) for line in run.log.read_text().splitlines()]
    return float(sum(each.get("whole", 0) + each.get("half", 0) / 2 for each in passes))


def _diverged(reason: str) -> str:
    """Return the reason for a missing LoRA, without the folder of the runs."""
    return f"diverged: {reason.removeprefix('training diverged: ')}".replace(f"{study_runs_dir()}/", "")


def _thin(run: Run) -> None:
    """Remove the checkpoints that no resume reads; the last one can make a damaged LoRA again."""
    for folder in run.checkpoint_folders()[1:]:
        remove_commit(folder)


def _reason(run: Run) -> str:
    try:
        return str(json.loads((run.folder / DIVERGED).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "the reason was not written"


@contextmanager
def _explained(run: Run, command: str) -> Iterator[None]:
    """Make errors and stops inside say how to resume the study, not the run."""
    go_on = f"resume with: {command}"
    try:
        yield
    except Stopped as stopped:
        stopped.remedy = go_on
        raise
    except RapmError as error:
        if isinstance(error, DiskError):
            error.remedy = error.then(go_on)
        else:
            error.remedy = error.remedy.replace(run.resume_command, command)
        raise

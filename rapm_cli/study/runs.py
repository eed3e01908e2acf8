"""The runs of studies: ordinary ones, found again by their settings, so that rows and files share them."""

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

REVISION = 1  # of what training computes: with another one no study uses the runs of before
WAYS = ("vram", "compile", "channels_last")  # change the last bits, and are no part of the fingerprint


def run_of(settings: Settings) -> Run:
    """The run of these settings, whether it is begun or not."""
    machine = hashlib.sha256(f"{settings.machine} {REVISION}".encode()).hexdigest()[:8]
    usual = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    ways = {name: getattr(settings.training, name) for name in WAYS}
    named = [f"{name.replace('_', '-')}-{value}".lower() for name, value in ways.items() if value != usual[name]]
    return Run(study_runs_dir() / "-".join([settings.fingerprint, machine, str(settings.training.iterations), *named]))


def finish(
    settings: Settings, base: Base, device: torch.device, command: str, reporter: Reporter, *, is_patient: bool
) -> str:
    """Bring the run of these settings to its end; nothing is done where it is there.

    Args:
        settings: Of the run, with no comparison at its end.
        base: Their base.
        device: Where to compute.
        command: What to type to go on with the study.
        reporter: Sees bars and talk.
        is_patient: Wait for another process that works on it.

    Returns:
        Why there is no LoRA: training diverged, or cannot be with these settings. Empty where there is one.

    Raises:
        LockedError: Another process works on it.
        RapmError: Something else failed, which another row would not mend: a full disk, memory.
        Stopped: A signal came; what was done is kept.
    """
    run, is_told = run_of(settings), False
    try:
        with _told(run, command):
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
    """Seconds of each phase of a finished run."""
    seconds: dict[str, Any] = run.result().get("seconds", {})
    return seconds


def evaluations_of(run: Run) -> float:
    """Network evaluations that a run's training took, each of one picture; a pass of the first half counts as half."""
    passes = [json.loads(line).get("passes", {}) for line in run.log.read_text().splitlines()]
    return float(sum(each.get("whole", 0) + each.get("half", 0) / 2 for each in passes))


def _diverged(reason: str) -> str:
    """Why there is no LoRA, without the folder that is nobody else's."""
    return f"diverged: {reason.removeprefix('training diverged: ')}".replace(f"{study_runs_dir()}/", "")


def _thin(run: Run) -> None:
    """Remove the commits that no resume reads any more; the last one makes a damaged LoRA again."""
    for folder in run.checkpoint_folders()[1:]:
        remove_commit(folder)


def _reason(run: Run) -> str:
    try:
        return str(json.loads((run.folder / DIVERGED).read_text())["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return "it is not written why"


@contextmanager
def _told(run: Run, command: str) -> Iterator[None]:
    """Inside, what stops a run says how the study goes on, not how the run would."""
    go_on = f"resume with: {command}"
    try:
        yield
    except Stopped as stopped:
        stopped.remedy = go_on
        raise
    except RapmError as error:
        if isinstance(error, DiskError):
            error.remedy = f"free space, and {go_on}"
        else:
            error.remedy = error.remedy.replace(run.resume_command, command)
        raise

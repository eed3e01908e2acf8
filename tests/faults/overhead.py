"""Measure what checkpoints and checks cost the training rate: pairs of distillations with and without them.

python -m tests.faults.overhead
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch

from rapm_cli.bases import BASES, LoadedBase
from rapm_cli.bases.device import describe_machine
from rapm_cli.cli.app import LIBRARY_SETTINGS
from rapm_cli.cli.console import Output
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.step_metrics import StepMetrics
from rapm_cli.distill.loop import Training
from rapm_cli.distill.resolve_run import settings_for
from rapm_cli.distill.trajectories import collect_trajectories
from rapm_cli.runs.run import new_run
from rapm_cli.runs.settings import Settings

DEVICE = torch.device("cpu")


def seconds_of(settings: Settings, folder: Path | None) -> tuple[float, float, float]:
    """Return the seconds of a training, those outside its steps, and those that checkpoints took.

    Args:
        settings: Settings of the run.
        folder: Run folder; None for bare training, without checkpoints, log and signals.
    """
    out, base = Output(quiet=True), BASES["demo"]
    loaded = LoadedBase(base.locate(out), DEVICE, torch.float32)
    trajectories = collect_trajectories(loaded, settings, base.defaults.rollout_batch, is_strict=False, reporter=out)
    trainer = Trainer(loaded.backbone, settings.training, num_slots=4, fine_steps=settings.teacher.fine_steps, delta=1)
    in_steps = _timed_steps(trainer)
    begun, saving = time.perf_counter(), 0.0
    if folder is None:
        list(train(trainer, trajectories))
    else:
        training = Training(new_run("demo", folder), settings, trainer, trajectories, is_strict=False, reporter=out)
        training.finish()
        saving = training.saving_seconds
    total = time.perf_counter() - begun
    return total, total - sum(in_steps), saving


def _timed_steps(trainer: Trainer) -> list[float]:
    """Return the seconds of each step of a trainer, filled as it trains."""
    seconds: list[float] = []
    step = trainer.train_step

    def timed(batch: Trajectories, iteration: int) -> list[StepMetrics]:
        begun = time.perf_counter()
        try:
            return step(batch, iteration)
        finally:
            seconds.append(time.perf_counter() - begun)

    trainer.train_step = timed  # type: ignore[method-assign]
    return seconds


def main(pairs: int = 3, iterations: int = 30, trajectories: int = 16, fine_steps: int = 10) -> float:
    """Run it and print the table: the median share of the training time that was spent outside its steps.

    That share holds commits, log, bars and signals, and the fetching of trajectories; the times of two trainings on a
    shared machine differ by more than it.

    Args:
        pairs: Distillations with a commit every 10 iterations, each beside one without.
        iterations: Of each, at the base's own rank and batch size.
        trajectories: What they learn from; making them is not timed.
        fine_steps: Of the teacher in a slot.
    """
    home = Path(tempfile.mkdtemp(prefix="rapm-overhead-"))
    os.environ |= {"RAPM_HOME": str(home), "NO_COLOR": "1", **LIBRARY_SETTINGS}
    given = {"iterations": iterations, "trajectories": trajectories, "fine_steps": fine_steps}
    given |= {"samples": 0, "checkpoint_every": 10}
    settings = settings_for(BASES["demo"], given, None, DEVICE, Output(quiet=True))
    rows, shares, ratios = [], [], []
    try:
        for pair in range(pairs):
            folders = [home / f"run-{pair}", None]
            timed = {folder: seconds_of(settings, folder) for folder in (folders if pair % 2 else folders[::-1])}
            (safe, outside, saving), (bare, fetching, _) = timed[folders[0]], timed[None]
            shares.append(outside / safe)
            ratios.append(safe / bare - 1)
            times = [f"{seconds:.2f}" for seconds in (bare, fetching, safe, outside, saving)]
            cells = [*times, f"{shares[-1]:.2%}", f"{ratios[-1]:+.2%}"]
            rows.append([f"pair {pair + 1}", *cells])
    finally:
        shutil.rmtree(home, ignore_errors=True)
    rows.append(["median", "", "", "", "", "", f"{statistics.median(shares):.2%}", f"{statistics.median(ratios):+.2%}"])
    title = f"{iterations} iterations of demo, a commit every {settings.checkpoint_every}; {describe_machine(DEVICE)}"
    columns = ["", "bare, s", "outside steps", "safe, s", "outside steps", "in commits", "share", "safe / bare"]
    Output().table(title, columns, rows)
    return statistics.median(shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=30)
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.pairs, arguments.iterations) > 0.02)

"""What commits and checks cost the training rate: the same distillation with and without them, in pairs.

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

from rapm_cli.bases import find_base
from rapm_cli.bases.device import describe_machine
from rapm_cli.cli.app import LIBRARY_SETTINGS
from rapm_cli.cli.console import Output
from rapm_cli.core.train import Trainer, train
from rapm_cli.workflows.collect import collect
from rapm_cli.workflows.rundir import new_run
from rapm_cli.workflows.settings import Settings
from rapm_cli.workflows.start import settings_for
from rapm_cli.workflows.training import Training

DEVICE = torch.device("cpu")


def seconds_of(settings: Settings, folder: Path | None) -> tuple[float, float]:
    """Seconds of a training, and those of them that went into commits.

    Args:
        settings: What to train.
        folder: Run folder; None for bare training, without commits, log and signals.
    """
    out, base = Output(quiet=True), find_base("demo")
    loaded = base.load(DEVICE, torch.float32)
    trajectories = collect(loaded, settings, base.defaults.rollout_batch, is_strict=False, watcher=out)
    trainer = Trainer(loaded.backbone, settings.training, num_slots=4, fine_steps=10, delta=1)
    begun = time.perf_counter()
    if folder is None:
        list(train(trainer, trajectories))
        return time.perf_counter() - begun, 0.0
    training = Training(new_run("demo", folder), settings, trainer, trajectories, is_strict=False, watcher=out)
    training.finish()
    return time.perf_counter() - begun, training.saving_seconds


def main(pairs: int = 3, iterations: int = 30) -> float:
    """Run it and print the table: the median share of the training time that went into commits.

    Args:
        pairs: Distillations with commits at the base's own interval, each beside one without.
        iterations: Of each, at the base's own rank and batch size.
    """
    home = Path(tempfile.mkdtemp(prefix="rapm-overhead-"))
    os.environ |= {"RAPM_HOME": str(home), "NO_COLOR": "1", **LIBRARY_SETTINGS}
    given = {"iterations": iterations, "trajectories": 32, "samples": 0}
    settings = settings_for(find_base("demo"), given, None, DEVICE, Output(quiet=True))
    rows, shares, ratios = [], [], []
    try:
        for pair in range(pairs):
            folders = [home / f"run-{pair}", None]
            timed = {folder: seconds_of(settings, folder) for folder in (folders if pair % 2 else folders[::-1])}
            (safe, saving), (bare, _) = timed[folders[0]], timed[None]
            shares.append(saving / safe)
            ratios.append(safe / bare - 1)
            cells = [f"{bare:.2f}", f"{safe:.2f}", f"{saving:.2f}", f"{shares[-1]:.2%}", f"{ratios[-1]:+.2%}"]
            rows.append([f"pair {pair + 1}", *cells])
    finally:
        shutil.rmtree(home, ignore_errors=True)
    rows.append(["median", "", "", "", f"{statistics.median(shares):.2%}", f"{statistics.median(ratios):+.2%}"])
    title = (
        f"{iterations} iterations of demo's defaults, a commit every {settings.save_every}; {describe_machine(DEVICE)}"
    )
    columns = ["", "bare, s", "safe, s", "of it commits, s", "share", "safe / bare"]
    Output().table(title, columns, rows)
    return statistics.median(shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=30)
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.pairs, arguments.iterations) > 0.02)

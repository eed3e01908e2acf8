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

from rapm_cli.cli.console import Output


def main(pairs: int = 3, iterations: int = 30) -> float:
    """Run it and print the table: the share of the training time that went into commits, measured two ways.

    Args:
        pairs: Distillations with commits at the base's own interval, each beside one without.
        iterations: Of each, at the base's own rank and batch size.
    """
    home = Path(tempfile.mkdtemp(prefix="rapm-overhead-"))
    os.environ |= {"RAPM_HOME": str(home), "NO_COLOR": "1"}
    from rapm_cli.cli.app import LIBRARY_SETTINGS

    os.environ |= LIBRARY_SETTINGS
    import torch

    from rapm_cli.bases import find_base
    from rapm_cli.bases.device import describe_machine
    from rapm_cli.core.train import Trainer, train
    from rapm_cli.workflows.collect import collect
    from rapm_cli.workflows.rundir import new_run
    from rapm_cli.workflows.start import settings_for
    from rapm_cli.workflows.training import Training

    out, device, base = Output(quiet=True), torch.device("cpu"), find_base("demo")
    given = {"iterations": iterations, "trajectories": 32, "samples": 0}
    settings = settings_for(base, given, None, device, out)
    rows, shares, differences = [], [], []
    try:
        for pair in range(pairs):
            seconds = {}
            for kind in ("plain", "safe") if pair % 2 else ("safe", "plain"):
                loaded = base.load(device, torch.float32)
                trajectories = collect(loaded, settings, base.defaults.rollout_batch, is_strict=False, watcher=out)
                trainer = Trainer(loaded.backbone, settings.training, num_slots=4, fine_steps=10, delta=1)
                begun = time.perf_counter()
                if kind == "plain":
                    list(train(trainer, trajectories))
                else:
                    run = new_run("demo", home / str(pair))
                    training = Training(run, settings, trainer, trajectories, is_strict=False, watcher=out)
                    training.finish()
                    saving = training.saving_seconds
                seconds[kind] = time.perf_counter() - begun
            shares.append(saving / seconds["safe"])
            differences.append(seconds["safe"] / seconds["plain"] - 1)
            cells = (f"{seconds['plain']:.2f}", f"{seconds['safe']:.2f}", f"{saving:.2f}", f"{shares[-1]:.2%}")
            rows.append([f"pair {pair + 1}", *cells, f"{differences[-1]:+.2%}"])
    finally:
        shutil.rmtree(home, ignore_errors=True)
    rows.append(["median", "", "", "", f"{statistics.median(shares):.2%}", f"{statistics.median(differences):+.2%}"])
    title = (
        f"{iterations} iterations of demo's defaults, a commit every {settings.save_every}; {describe_machine(device)}"
    )
    columns = ["", "without, s", "with, s", "of it commits, s", "share", "with / without"]
    Output().table(title, columns, rows)
    return statistics.median(shares)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=30)
    arguments = parser.parse_args()
    raise SystemExit(main(arguments.pairs, arguments.iterations) > 0.02)

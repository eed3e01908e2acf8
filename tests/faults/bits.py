"""Compare the bits of a stopped and an uninterrupted run on a device, and measure what `--deterministic` costs there.

python -m tests.faults.bits --device cuda
"""

import argparse
import json
import shutil
import signal
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from rapm_cli.bases.device import describe_machine, find_device
from rapm_cli.cli.console import Output
from rapm_cli.runs.run import Run
from tests.faults import processes
from tests.faults.kill import results

FLAG = "--deterministic"
SHORT = ("--trajectories", "4", "--fine-steps", "2", "--rank", "1", "--batch-size", "1")


@dataclass(frozen=True)
class Result:
    """One distillation.

    Args:
        title: Flags of the distillation, and whether it was stopped.
        seconds: Time of one iteration, without checkpoints.
        is_equal: True if it ended with the bits of the first one with the same flags.
    """

    title: str
    seconds: float
    is_equal: bool


def only_run(home: Path) -> Run | None:
    """Return the only run of a home, or None before it exists."""
    return next((Run(path) for path in home.glob("data/runs/*")), None)


def stop_halfway(argv: list[str], home: Path, log: Path, half: int) -> None:
    """Run a command until it has logged `half` iterations, then send SIGTERM and wait for the end."""
    pid = processes.start(argv, home, log)
    while not ((run := only_run(home)) and run.log.exists() and run.log.read_bytes().count(b"\n") >= half):
        assert processes.wait(pid, 0.02) is None, log.read_text()
    assert processes.kill(pid, signal.SIGTERM) == 128 + signal.SIGTERM, log.read_text()


def distilled(argv: list[str], home: Path, log: Path, iterations: int) -> tuple[float, dict[str, str]]:
    """Run a command to its end; return the seconds of an iteration, and the checksums of all files."""
    assert processes.run(argv, home, log) == 0, log.read_text()
    run = only_run(home)
    assert run
    seconds = json.loads((run.folder / "result.json").read_text())["seconds"]
    return (seconds["training"] - seconds["saving"]) / iterations, results(home)


def main(device: str = "cpu", iterations: int = 20, more: tuple[str, ...] = ()) -> list[Result]:
    """Run all distillations, and print the table.

    Args:
        device: As `--device` takes it.
        iterations: Of each distillation; one is stopped after half of them.
        more: Other options of `rapm distill`.
    """
    processes.preload()
    argv = ["distill", "--base", "demo", "--trajectories", "16", "--samples", "0", *more]
    argv += ["--iterations", str(iterations), "--device", device]
    place, made, first = Path(tempfile.mkdtemp(prefix="rapm-bits-")), [], {}
    try:
        for flags in ([], [FLAG]):
            name = flags[0] if flags else "without it"
            for how in ("", ", stopped halfway and resumed"):
                home, log = place / f"{len(made)}", place / f"{len(made)}.txt"
                if how.endswith("resumed"):
                    stop_halfway([*argv, *flags], home, log, iterations // 2)
                seconds, sums = distilled([*argv, *flags], home, log, iterations)
                made.append(Result(name + how, seconds, sums == first.setdefault(name, sums)))
                Output().say(f"{made[-1].title}: {seconds:.3f} s an iteration")
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = [
        [m.title, f"{m.seconds:.3f}", f"{m.seconds / made[0].seconds:.2f}", "yes" if m.is_equal else "no"] for m in made
    ]
    title = f"{FLAG} and bits: rapm {' '.join(argv)}; {describe_machine(find_device(device))}"
    Output().table(title, ["", "s/iteration", "times the first", "same bits"], rows)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, epilog="Other options go to rapm distill.")
    parser.add_argument("--device", default="cuda" if torch.cuda.device_count() else "cpu")
    parser.add_argument("--iterations", type=int, default=20)
    arguments, others = parser.parse_known_args()
    found = main(arguments.device, arguments.iterations, tuple(others))
    raise SystemExit(not all(result.is_equal for result in found if result.title.startswith(FLAG)))

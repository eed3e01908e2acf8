"""SIGKILL at random moments of an evaluation: no sample is lost, none is there twice, and the scores are equal.

python -m tests.faults.samples --kills 20
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rapm_cli.cli.console import Output
from tests.evaluate.small_world import command, write_world
from tests.faults import processes


@dataclass
class Tally:
    """Counts of one run of this program.

    Args:
        kills: Kills by what the evaluation was doing.
        evaluations: Evaluations that were finished.
        equal: Evaluations with the scores and the images, byte for byte, of an uninterrupted one.
        lost: Images that were kept and are gone after a kill.
        litter: Unfinished files that the last command left.
    """

    kills: dict[str, int] = field(default_factory=lambda: {"loading": 0, "sampling": 0, "extracting features": 0})
    evaluations: int = 0
    equal: int = 0
    lost: int = 0
    litter: int = 0


def images(home: Path) -> dict[str, str]:
    """Return the sha256 of every kept image, by path."""
    found = sorted((home / "cache" / "galleries").glob("*/[0-9]*/*.png"))
    return {path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def scores(log: Path) -> list[dict]:
    """Return what the command printed, without times."""
    text = log.read_text()
    record = json.loads(text[text.index("{") :])  # after the lines of standard error
    return [row["metrics"] for row in record["rows"]] + [record["fingerprint"], record["extractors"]]


def main(kills: int = 20, samples: int = 400, longest: float = 8.0, seed: int = 0) -> Tally:
    """Run it and print the table.

    Args:
        kills: Number of SIGKILLs.
        samples: Prompts of each evaluation.
        longest: Longest time until a kill, in seconds.
        seed: Seed of the moments.
    """
    folder, dice, tally = Path(tempfile.mkdtemp(prefix="rapm-samples-")), random.Random(seed), Tally()
    begun = time.perf_counter()
    options = ("--samples", samples, "--batch-size", 4, "--teacher-samples", 16, "--metrics", "clip,fidelity", "--json")
    argv = command(folder / "world", *options)
    try:
        processes.preload()
        _make(folder / "world")
        assert processes.run(argv, folder / "whole", folder / "whole.txt") == 0, (folder / "whole.txt").read_text()
        wanted = images(folder / "whole"), scores(folder / "whole.txt")
        while sum(tally.kills.values()) < kills:
            home = folder / f"home-{tally.evaluations}"
            log = _interrupt(argv, home, len(wanted[0]), tally, dice, kills, longest)
            tally.evaluations += 1
            tally.equal += (images(home), scores(log)) == wanted
            tally.litter += sum(len(list(home.rglob(pattern))) for pattern in (".rapm-*", "*.claim"))
            shutil.rmtree(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [[f"SIGKILL, {where}", str(count)] for where, count in tally.kills.items()]
    rows += [
        ["finished evaluations", str(tally.evaluations)],
        ["of them with equal images and scores", str(tally.equal)],
        ["images lost", str(tally.lost)],
        ["unfinished files left", str(tally.litter)],
        ["minutes", f"{(time.perf_counter() - begun) / 60:.1f}"],
    ]
    Output().table(f"rapm eval, {samples} prompts of a small base, seed {seed}", ["", "count"], rows)
    return tally


def _make(place: Path) -> None:
    """Write the small world in a fork: later ones need a parent that has computed nothing."""
    place.mkdir(parents=True)
    pid = os.fork()
    if not pid:
        code = 1
        try:
            write_world(place)
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def _interrupt(
    argv: list[str], home: Path, wanted: int, tally: Tally, dice: random.Random, kills: int, longest: float
) -> Path:
    """Run one evaluation, killed again and again until all `kills` are spent, and return its last log."""
    number = 0
    while True:
        log = home.parent / f"log-{tally.evaluations}-{number}.txt"
        pid = processes.start(argv, home, log)
        is_last = sum(tally.kills.values()) >= kills
        code = processes.wait(pid, 600 if is_last else dice.uniform(0.2, longest))
        if code is None:
            before = images(home)
            processes.kill(pid)
            after = images(home)
            tally.lost += len(before.keys() - after.keys())
            is_sampled = len(after) == wanted
            tally.kills["extracting features" if is_sampled else "sampling" if after else "loading"] += 1
        elif code == 0:
            return log
        else:
            raise AssertionError(f"exit code {code}: {log.read_text()[-2000:]}")
        number += 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--samples", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    main(**vars(parser.parse_args()))

"""SIGKILL at random moments of an evaluation: no picture is lost, none is there twice, and the figures are the same.

python -m tests.faults.gallery --kills 20
"""

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rapm_cli.cli.console import Output
from tests.evaluate.small_world import command
from tests.faults import processes


@dataclass
class Tally:
    """What happened.

    Args:
        kills: By what was going on.
        evaluations: Brought to their ends.
        equal: Those with the uninterrupted one's figures and every picture's bytes.
        lost: Pictures that were kept and are gone after a kill.
        litter: Unfinished files that the next command left.
    """

    kills: dict[str, int] = field(default_factory=lambda: {"loading": 0, "drawing": 0, "looking": 0})
    evaluations: int = 0
    equal: int = 0
    lost: int = 0
    litter: int = 0


def pictures(home: Path) -> dict[str, str]:
    """sha256 of every picture that is kept."""
    found = sorted((home / "cache" / "galleries").glob("*/[0-9]*/*.png"))
    return {path.relative_to(home).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def figures(log: Path) -> list[dict]:
    """What the last command said, without what differs by its time."""
    text = log.read_text()
    record = json.loads(text[text.index("{") :])  # after what was said on standard error
    return [row["metrics"] for row in record["rows"]] + [record["fingerprint"], record["extractors"]]


def main(kills: int = 20, samples: int = 400, longest: float = 8.0, seed: int = 0) -> Tally:
    """Run it and print the table.

    Args:
        kills: How many SIGKILLs.
        samples: Prompts of each evaluation.
        longest: Seconds that a process lives at most.
        seed: Of the moments.
    """
    folder, dice, tally = Path(tempfile.mkdtemp(prefix="rapm-gallery-")), random.Random(seed), Tally()
    begun = time.perf_counter()
    options = ("--samples", samples, "--batch-size", 4, "--teacher-samples", 16, "--metrics", "clip,fidelity", "--json")
    argv = command(folder / "world", *options)
    try:
        _make(folder / "world")
        processes.preload()
        assert processes.run(argv, folder / "whole", folder / "whole.txt") == 0, (folder / "whole.txt").read_text()
        wanted = pictures(folder / "whole"), figures(folder / "whole.txt")
        while sum(tally.kills.values()) < kills:
            home = folder / f"home-{tally.evaluations}"
            log = _interrupt(argv, home, len(wanted[0]), tally, dice, kills, longest)
            tally.evaluations += 1
            tally.equal += (pictures(home), figures(log)) == wanted
            tally.litter += sum(len(list(home.rglob(pattern))) for pattern in (".rapm-*", "*.claim"))
            shutil.rmtree(home)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [[f"SIGKILL, {where}", str(count)] for where, count in tally.kills.items()]
    rows += [
        ["evaluations brought to their ends", str(tally.evaluations)],
        ["of them with equal pictures and figures", str(tally.equal)],
        ["pictures lost", str(tally.lost)],
        ["unfinished files left", str(tally.litter)],
        ["minutes", f"{(time.perf_counter() - begun) / 60:.1f}"],
    ]
    Output().table(f"rapm eval, {samples} prompts of a small base, seed {seed}", ["", "count"], rows)
    return tally


def _make(place: Path) -> None:
    """In a process of its own: forks need a parent that has computed nothing."""
    place.mkdir(parents=True)
    code = f"import pathlib, tests.evaluate.small_world as w; w.write_world(pathlib.Path({str(place)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def _interrupt(
    argv: list[str], home: Path, wanted: int, tally: Tally, dice: random.Random, kills: int, longest: float
) -> Path:
    """One evaluation of so many pictures, killed again and again until `kills` are spent; its last log."""
    number = 0
    while True:
        log = home.parent / f"log-{tally.evaluations}-{number}.txt"
        pid = processes.start(argv, home, log)
        is_last = sum(tally.kills.values()) >= kills
        code = processes.wait(pid, 600 if is_last else dice.uniform(0.2, longest))
        if code is None:
            before = pictures(home)
            processes.kill(pid)
            after = pictures(home)
            tally.lost += len(before.keys() - after.keys())
            is_drawn = len(after) == wanted
            tally.kills["looking" if is_drawn else "drawing" if after else "loading"] += 1
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

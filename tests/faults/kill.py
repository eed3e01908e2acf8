"""SIGKILL at random moments of a distillation, resumed each time: the end must be the uninterrupted run's, bit for bit.

python -m tests.faults.kill --kills 200
"""

import argparse
import hashlib
import random
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import DamagedError
from rapm_cli.runs.run import Run
from tests.faults import processes

SAVE_EVERY = 3
LONG = "--trajectories 128 --fine-steps 2 --iterations 24 --rank 2 --batch-size 2 --samples 0"
SHORT = "--trajectories 4 --fine-steps 2 --iterations 4 --rank 1 --batch-size 1 --samples 0 --discriminator latent"


@dataclass
class Tally:
    """Counts of one run of this program.

    Args:
        kills: Kills by what the distillation was doing.
        runs: Finished runs.
        equal: Finished runs that equal the uninterrupted one in every file.
        most_repeated: Largest number of iterations that one kill made the run repeat.
        shards_lost: Finished shards of trajectories that were gone after a kill.
        litter: Unfinished files that the last command left.
        differences: Files that differ.
    """

    kills: dict[str, int] = field(default_factory=lambda: {"loading": 0, "trajectories": 0, "training": 0, "end": 0})
    runs: int = 0
    equal: int = 0
    most_repeated: int = 0
    shards_lost: int = 0
    litter: int = 0
    differences: list[str] = field(default_factory=list)


def results(home: Path) -> dict[str, str]:
    """Return the sha256 of all files in which finished runs must be equal; times and parents are left out."""
    (run,) = [path for path in (home / "data" / "runs").iterdir() if path.is_dir()]
    newest = Run(run).checkpoint_folders()[0]
    files = [path for path in newest.iterdir() if path.name != "MANIFEST.json"]
    files += [run / name for name in ("lora.safetensors", "metrics.jsonl", "sheet.png")]
    files += sorted((home / "cache" / "trajectories").rglob("*.safetensors"))
    names = [path.relative_to(home).as_posix().replace(run.name, "run") for path in files]
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in zip(names, files, strict=True)}


def progress(home: Path) -> tuple[int, int, int]:
    """Return the iterations in the log and in the newest good checkpoint, and the shards of trajectories."""
    from rapm_cli.core.storage.commit import verify

    shards = len(list((home / "cache" / "trajectories").glob("*/[0-9]*")))
    runs = list((home / "data" / "runs").glob("*")) if (home / "data" / "runs").exists() else []
    for run in runs:
        log = run / "metrics.jsonl"
        logged = log.read_bytes().count(b"\n") if log.exists() else 0
        for folder in Run(run).checkpoint_folders():
            try:
                verify(folder)
            except DamagedError as error:
                raise AssertionError(f"a kill damaged a commit: {error.message}") from error
            return logged, int(folder.name), shards
    return 0, -1, shards


def interrupt(
    argv: list[str], folder: Path, wanted: dict[str, str], tally: Tally, dice: random.Random, kills: int, longest: float
) -> None:
    """Run one distillation to its end, killed again and again until all `kills` are spent."""
    home, log, is_begun = folder / "home", folder / "log.txt", False
    while True:
        again = ["distill", "--resume"] if is_begun and dice.random() < 0.5 else argv
        pid = processes.start(again, home, log)
        is_last = sum(tally.kills.values()) >= kills
        code = processes.wait(pid, 3600 if is_last else dice.uniform(0.2, longest))
        before = progress(home)
        if code is None:
            processes.kill(pid)
        logged, saved, shards = progress(home)
        tally.shards_lost += max(0, before[2] - shards)
        tally.most_repeated = max(tally.most_repeated, logged - max(saved, 0))
        is_begun = is_begun or any((home / "data" / "runs").glob("*/commits/settings-*"))
        is_finished = any((home / "data" / "runs").glob("*/result.json"))
        if code is None:
            tally.kills[_phase(home, shards, saved)] += 1
        if code == 0 or (code is None and is_finished):  # killed after its last word: the same command would start anew
            break
        if code is not None:
            raise AssertionError(f"exit code {code}: {log.read_text()[-2000:]}")
    found = results(home)
    tally.runs += 1
    tally.equal += found == wanted
    tally.differences += [name for name in found | wanted if found.get(name) != wanted.get(name)]
    tally.litter += len(list(home.rglob(".rapm-*")))


def _phase(home: Path, shards: int, saved: int) -> str:
    """Return the phase in which the run was killed."""
    if any((home / "data" / "runs").glob("*/lora.safetensors")):
        return "end"
    return "training" if saved >= 0 else "trajectories" if shards else "loading"


def main(kills: int = 200, settings: str = LONG, longest: float = 12.0, seed: int = 0) -> Tally:
    """Run it and print the table.

    Args:
        kills: How many SIGKILLs.
        settings: Of the distillation.
        longest: Seconds that a process lives at most.
        seed: Of the moments.
    """
    processes.preload()
    argv = ["distill", "--base", "demo", *settings.split(), "--checkpoint-every", str(SAVE_EVERY)]
    folder, dice, tally = Path(tempfile.mkdtemp(prefix="rapm-kill-")), random.Random(seed), Tally()
    begun = time.perf_counter()
    try:
        code = processes.run(argv, folder / "whole" / "home", folder / "whole.txt")
        assert code == 0, (folder / "whole.txt").read_text()
        wanted = results(folder / "whole" / "home")
        while sum(tally.kills.values()) < kills:
            place = folder / f"run-{tally.runs}"
            interrupt(argv, place, wanted, tally, dice, kills, longest)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    rows = [[f"SIGKILL, {where}", str(count)] for where, count in tally.kills.items()]
    rows += [
        ["runs finished", str(tally.runs)],
        ["of them equal bit for bit", str(tally.equal)],
        ["iterations repeated, at most", f"{tally.most_repeated} (commit every {SAVE_EVERY})"],
        ["trajectories lost", str(tally.shards_lost)],
        ["unfinished files left", str(tally.litter)],
        ["minutes", f"{(time.perf_counter() - begun) / 60:.1f}"],
    ]
    Output().table(f"rapm distill --base demo {settings}, seed {seed}", ["", "count"], rows)
    if tally.differences:
        Output().warn(f"these differ: {', '.join(sorted(set(tally.differences)))}")
    return tally


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    made = main(arguments.kills, seed=arguments.seed)
    raise SystemExit(made.equal != made.runs or made.most_repeated > SAVE_EVERY or made.shards_lost + made.litter > 0)

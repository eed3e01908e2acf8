"""A full disk at many moments of a distillation: its exit code, the last commit whole, no litter, and the same end.

python -m tests.faults.disk
"""

import contextlib
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.cli.console import Output
from rapm_cli.core.storage.commit import verify
from rapm_cli.runs.run import Run
from tests.faults import processes
from tests.faults.kill import SHORT, results

ARGV = ["distill", "--base", "demo", *SHORT.split(), "--checkpoint-every", "2"]
FILE_LIMITS = (2_000, 200_000, 400_000, 800_000)  # bytes; the files of a run lie between them
DISKS, ROOMY = (256, 1_024, 8_192), 40_960  # KiB of a tmpfs


@dataclass(frozen=True)
class Result:
    """The state after a full disk.

    Args:
        title: Kind of the limit.
        code: Exit code after all retries.
        last: Newest commit then.
        litter: Number of unfinished files.
        is_equal: True if the resumed run equals the uninterrupted one, bit for bit.
        line: Error message.
    """

    title: str
    code: int
    last: str
    litter: int
    is_equal: bool
    line: str


def brief_waits() -> None:
    """Wait a tenth of a second where a user would wait minutes."""
    from rapm_cli.runs import retry

    retry.WAITS = (0.1, 0.1)


def limit_files(size: int) -> Callable[[], None]:
    def limit() -> None:
        brief_waits()
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))

    return limit


def check(title: str, code: int, home: Path, log: Path, wanted: dict[str, str]) -> Result:
    """Check what is left, then resume without the limit and compare."""
    line = log.read_text().strip().splitlines()[-1].replace(str(home), "HOME")
    commits = [*home.glob("data/runs/*/commits/[!.]*"), *home.glob("cache/trajectories/*/[0-9]*")]
    for commit in commits:
        verify(commit)
    runs = [Run(path) for path in home.glob("data/runs/*")]
    last = next((folder.name for run in runs for folder in run.checkpoint_folders()), "none")
    litter = len(list(home.rglob(".rapm-*")))
    if code:
        assert processes.run(ARGV, home, log) == 0, log.read_text()
    made = Result(title, code, last, litter, results(home) == wanted, line)
    Output().say(f"{title}: exit {code}")
    return made


def with_file_limits(place: Path, wanted: dict[str, str], limits: tuple[int, ...]) -> list[Result]:
    made = []
    for size in limits:
        home, log = place / f"limit-{size}", place / f"limit-{size}.txt"
        code = processes.run(ARGV, home, log, limit_files(size))
        made.append(check(f"RLIMIT_FSIZE {size:,} bytes", code, home, log, wanted))
    return made


def with_small_disks(place: Path, wanted: dict[str, str]) -> list[Result]:
    """On a tmpfs, where one can be mounted: too small from the start, and filled by another program while training."""
    made = []
    for size in DISKS:
        home, log = place / f"disk-{size}", place / f"disk-{size}.txt"
        if not mount(home, size):
            Output().say("skipped: no tmpfs can be mounted here")
            return made
        try:
            code = processes.run(ARGV, home, log, brief_waits)
            mount(home, ROOMY, "remount,")
            made.append(check(f"disk of {size:,} KiB", code, home, log, wanted))
        finally:
            subprocess.run(["umount", home], check=True)
    for is_freed in (False, True):
        home, log = place / f"filled-{is_freed}", place / f"filled-{is_freed}.txt"
        mount(home, ROOMY)
        try:
            code = filled_while_training(home, log, is_freed=is_freed)
            (home / "filler").unlink(missing_ok=True)
            title = "filled by another program, " + ("freed while it waits" if is_freed else "not freed")
            made.append(check(title, code, home, log, wanted))
        finally:
            subprocess.run(["umount", home], check=True)
    return made


def filled_while_training(home: Path, log: Path, *, is_freed: bool) -> int:
    """Return the exit code of a run whose disk fills up after its first training checkpoint."""
    pid = processes.start(ARGV, home, log, (lambda: None) if is_freed else brief_waits)
    while (code := processes.wait(pid, 0.02)) is None and not list(home.glob("data/runs/*/commits/00000002")):
        pass
    with contextlib.suppress(OSError), (home / "filler").open("wb", buffering=0) as file:
        while code is None:
            file.write(bytes(2**14))
    while code is None and is_freed and "trying again" not in log.read_text():
        code = processes.wait(pid, 0.05)
    if is_freed:
        (home / "filler").unlink()
    while code is None:
        code = processes.wait(pid, 60)
    return code


def mount(home: Path, size: int, how: str = "") -> bool:
    home.mkdir(parents=True, exist_ok=True)
    options = f"{how}size={size}k"
    return subprocess.run(["mount", "-t", "tmpfs", "-o", options, "rapm", home], capture_output=True).returncode == 0


def main(*, is_short: bool = False) -> list[Result]:
    """Fill all disks, and print the table."""
    processes.preload()
    place = Path(tempfile.mkdtemp(prefix="rapm-disk-"))
    try:
        assert processes.run(ARGV, place / "whole", place / "whole.txt") == 0, (place / "whole.txt").read_text()
        wanted = results(place / "whole")
        made = with_file_limits(place, wanted, FILE_LIMITS[1:3] if is_short else FILE_LIMITS)
        made += [] if is_short else with_small_disks(place, wanted)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    rows = [[m.title, str(m.code), m.last, str(m.litter), "yes" if m.is_equal else "NO", m.line] for m in made]
    columns = ["", "exit", "last commit", "litter", "resumed: equal", "said"]
    Output().table(f"rapm {' '.join(ARGV)}", columns, rows, text_columns=(0, 5))
    return made


if __name__ == "__main__":
    made = main()
    raise SystemExit(any(result.litter or not result.is_equal or result.code not in (0, 5) for result in made))

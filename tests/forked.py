"""`rapm` in processes of its own that need not import it: forks of a server that has, and has computed nothing."""

import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from subprocess import TimeoutExpired

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.preloaded"])


class Forked:
    """A process that runs `rapm`, with some of the methods of `subprocess.Popen`.

    Args:
        argv: Arguments of `rapm`.
        environment: Changes of this process's environment.
        before: Function that the process calls first; it must be picklable.
    """

    def __init__(self, argv: list[str], environment: dict[str, str], before: Callable[[], object] = int) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="rapm-forked-"))
        arguments = argv, self._folder, os.environ | environment, before
        self._process = SERVER.Process(target=_run, args=arguments, daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def communicate(self, timeout: float) -> tuple[str, str]:
        """Wait for the end; return what it wrote to standard output and to standard error."""
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise TimeoutExpired("rapm", timeout)
        out, err = ((self._folder / name).read_text() for name in ("1", "2"))
        shutil.rmtree(self._folder)
        return out, err


def _run(argv: list[str], folder: Path, environment: dict[str, str], before: Callable[[], object]) -> None:
    from rapm_cli.cli.app import run

    os.environ.clear()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(folder / str(number), os.O_CREAT | os.O_WRONLY | os.O_APPEND), number)
    before()
    sys.argv = ["rapm", *argv]
    run()

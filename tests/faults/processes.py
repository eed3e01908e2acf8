"""Start `rapm` in fast new processes: forks of a process that has imported everything and computed nothing."""

import importlib
import os
import signal
import sys
import time
from pathlib import Path


def preload() -> None:
    """Import what a distillation imports, so that forks need not."""
    from rapm_cli.cli.app import LIBRARY_SETTINGS

    os.environ |= LIBRARY_SETTINGS
    for name in ("torch", "peft", "transformers", "diffusers", "rapm_cli.distill.distill"):
        importlib.import_module(name)
    for library, name in (("diffusers", "StableDiffusionXLPipeline"), ("transformers", "CLIPTextModelWithProjection")):
        getattr(importlib.import_module(library), name)  # these libraries import their parts when asked for them


def start(argv: list[str], home: Path, log: Path, before=lambda: None) -> int:
    """Fork a process that runs a command and exits with its code, and return its pid.

    Args:
        argv: Of `rapm`.
        home: RAPM_HOME.
        log: File that takes what it says.
        before: Called in the fork first.
    """
    home.mkdir(parents=True, exist_ok=True)
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        out = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ["RAPM_HOME"] = str(home)
        os.environ["NO_COLOR"] = "1"
        before()
        from rapm_cli.cli.app import main

        code = main(argv)
        sys.stdout.flush()
    finally:
        os._exit(code)


def wait(pid: int, seconds: float) -> int | None:
    """Return the exit code of a process, minus the signal that ended it, or None while it still runs."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    return None


def kill(pid: int, number: int = signal.SIGKILL) -> int:
    """Send a signal and wait for the end; return the exit code, or minus the signal."""
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(argv: list[str], home: Path, log: Path, before=lambda: None) -> int:
    """Run a command to its end, and return its exit code."""
    return os.waitstatus_to_exitcode(os.waitpid(start(argv, home, log, before), 0)[1])

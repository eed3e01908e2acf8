"""A home with a run, finished or not, and what tests do to its folders."""

import contextlib
import os
import shutil
import subprocess
import sys

import pytest

from rapm_cli.runs.run import Run
from tests.small_demo import use_small_demo

TINY = (
    *("--trajectories", "4", "--fine-steps", "2", "--rank", "1", "--batch-size", "1", "--samples", "8"),
    *("--discriminator", "latent", "--checkpoint-every", "2", "--iterations", "4"),
)
PRUNE = ["inspect", "cache", "--prune"]


@pytest.fixture(scope="session")
def finished(tmp_path_factory, small_folder):
    """A home with one finished run of the small demo base."""
    from rapm_cli.cli.app import main

    home = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(home))
        use_small_demo(small_folder, patch)
        assert main(["distill", "--base", "demo", *TINY, "--quiet"]) == 0
    return home


@pytest.fixture
def run(finished, home, small_demo):
    """The run of a copy of that home."""
    shutil.copytree(finished, home)
    return Run(next((home / "data" / "runs").iterdir()))


@pytest.fixture
def store(run, home):
    return next((home / "cache" / "trajectories").iterdir())


@pytest.fixture
def unfinished(run):
    """The same run, killed before it was finished."""
    for name in ("result.json", "lora.safetensors"):
        (run.folder / name).unlink()
    shutil.rmtree(run.checkpoints_dir / "00000004")
    return run


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def size_of(folder):
    return sum(map(len, contents(folder).values()))


def of_a_gone_process(name):
    """A temporary name of this process as one would have written it that is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        pass
    return name.replace(f"-{os.getpid()}.", f"-{gone.pid}.")


@contextlib.contextmanager
def held(folder):
    """Another process holds a folder."""
    code = (
        "import sys; from pathlib import Path; from rapm_cli.cli.console import Output\n"
        "from rapm_cli.runs.lock import locked\n"
        "with locked(Path(sys.argv[1]), Output(quiet=True), ''): print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(folder)], stdin=-1, stdout=-1, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        yield holder.pid
        holder.stdin.close()

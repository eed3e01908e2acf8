"""A short finished run, and what makes it one that was stopped: for tests of runs and of distillation."""

import os
import shutil

import pytest

from rapm_cli.distill import loop
from rapm_cli.runs.run import Run
from tests.small_demo import use_small_demo

TINY = (
    *("--trajectories", "4", "--fine-steps", "2", "--rank", "1", "--batch-size", "1", "--samples", "0"),
    *("--discriminator", "latent", "--checkpoint-every", "2", "--iterations", "4"),
)
DISTILL = ["distill", "--base", "demo", *TINY]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, small_folder):
    """A run of the small demo base that was not interrupted, in a home of its own."""
    from rapm_cli.cli.app import main

    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(home))
        use_small_demo(small_folder, patch)
        assert main([*DISTILL, "--quiet"]) == 0
    return home


@pytest.fixture
def again(whole, home, small_demo):
    """The same home, copied: a finished run whose files may be changed."""
    shutil.copytree(whole, home)
    return Run(next((home / "data" / "runs").iterdir()))


def unfinished(run, *commits):
    """As if killed: without its result, its LoRA and some commits."""
    for name in ("result.json", "lora.safetensors", "sheet.png"):
        (run.folder / name).unlink()
    for name in commits:
        shutil.rmtree(run.checkpoints_dir / name)


def state_of(run):
    newest = run.checkpoint_folders()[0]
    files = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "MANIFEST.json"}
    return files | {name: (run.folder / name).read_bytes() for name in ("lora.safetensors", "metrics.jsonl")}


def signal_at(monkeypatch, iteration, number, times=1):
    """Send this process a signal in the middle of an iteration."""
    real = loop.Training._take

    def take(self, progress):
        if progress.iteration == iteration:
            for _ in range(times):
                os.kill(os.getpid(), number)
        real(self, progress)

    monkeypatch.setattr(loop.Training, "_take", take)

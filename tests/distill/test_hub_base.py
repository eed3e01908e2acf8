"""A base of the hub as a user meets it: the first run brings it, whatever happens on the way; the next needs no net."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rapm_cli.bases.places import runs_dir
from rapm_cli.runs.run import newest_run_with_lora
from tests.bases.hub_server import running
from tests.messages import names

REPO, UNET = "someone/small-sdxl", "unet/diffusion_pytorch_model.fp16.safetensors"
COUNTS = [
    "--iterations", "1", "--trajectories", "2", "--samples", "0", "--fine-steps", "2", "--rank", "1",
    "--batch-size", "1", "--discriminator", "latent",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(small_folder):
    """The small demo base under the names of SDXL in half precision, beside files that rapm has no use for."""
    names = {path: path.relative_to(small_folder).as_posix() for path in small_folder.rglob("*") if path.is_file()}
    files = {name.replace(".safetensors", ".fp16.safetensors"): path.read_bytes() for path, name in names.items()}
    beside = {"README.md": b"words", "unet/pipeline.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"x"}
    with running() as hub:
        hub.repos[REPO] = files | beside
        yield hub


@pytest.fixture
def begin(hub, tmp_path):
    """Start to distil in a process of its own."""
    environment = os.environ | hub.environment(tmp_path / "hf")
    (tmp_path / "prompts.txt").write_text("a red cube left of a blue sphere\na green cone\n")

    def begin(*more: str) -> subprocess.Popen[str]:
        words = ["distill", "--base", REPO, *COUNTS, "--prompts", str(tmp_path / "prompts.txt"), *more]
        command = [sys.executable, "-m", "rapm_cli", *words]
        return subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)

    return begin


def test_a_stopped_download_keeps_complete_files_and_a_second_run_asks_for_nothing(hub, begin):
    hub.stalled = {UNET}
    stopped = begin()
    while not any(request.startswith("GET") and request.endswith(UNET) for request in hub.requests):
        assert stopped.poll() is None, stopped.communicate()[1]
        time.sleep(0.01)
    came = {request.partition("/resolve/")[2] for request in hub.requests} - {""}
    stopped.send_signal(signal.SIGTERM)
    said = stopped.communicate()[1]
    assert stopped.returncode == 143, said
    assert f"the complete files of {REPO} are kept" in said
    hub.stalled = set()
    hub.forget()

    done = begin()
    said = done.communicate()[1]
    assert done.returncode == 0, said
    assert f"downloading {REPO}@{hub.commit(REPO)[:12]}: " in said
    assert "MB/s" in said
    asked = {request.partition("/resolve/")[2] for request in hub.requests} - {""}
    assert {name.partition("/")[2] for name in asked & came} == {UNET}
    needed = {name: data for name, data in hub.repos[REPO].items() if name.endswith((".json", ".fp16.safetensors"))}
    assert {name.partition("/")[2] for name in asked | came} <= set(needed)
    assert newest_run_with_lora(REPO).folder.parent == runs_dir()  # by the base's name, slash and all
    hub.forget()

    again = begin("--new", "--offline")
    said = again.communicate()[1]
    assert again.returncode == 0, said
    assert "MB/s" not in said
    assert hub.requests == []


def test_wrong_bytes_are_refused_and_the_right_ones_taken_later(hub, begin):
    hub.wrong = {UNET}
    refused = begin()
    said = refused.communicate()[1]
    assert refused.returncode == 3, said
    assert names(said.splitlines()[-1], "error:", UNET, REPO)
    hub.wrong = set()
    hub.forget()
    done = begin()
    said = done.communicate()[1]
    assert done.returncode == 0, said
    assert hub.sent >= len(hub.repos[REPO][UNET])

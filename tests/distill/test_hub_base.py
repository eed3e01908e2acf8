"""A base of the hub as a user meets it: the first run brings it, whatever happens on the way; the next needs no net."""

import os
import signal
import threading
import time

import pytest
from huggingface_hub import constants

from rapm_cli.bases.places import runs_dir
from rapm_cli.runs.run import newest_run_with_lora
from tests.bases.hub_server import in_this_process
from tests.messages import names

REPO, UNET = "someone/small-sdxl", "unet/diffusion_pytorch_model.fp16.safetensors"
COUNTS = [
    "--iterations", "1", "--trajectories", "2", "--samples", "0", "--fine-steps", "2", "--rank", "1",
    "--batch-size", "1", "--discriminator", "latent",
]  # fmt: skip

pytestmark = pytest.mark.slow


@pytest.fixture
def hub(small_folder, tmp_path):
    """The small demo base under the names of SDXL in half precision, beside files that rapm has no use for."""
    names = {path: path.relative_to(small_folder).as_posix() for path in small_folder.rglob("*") if path.is_file()}
    files = {name.replace(".safetensors", ".fp16.safetensors"): path.read_bytes() for path, name in names.items()}
    beside = {"README.md": b"words", "unet/pipeline.py": b"raise SystemExit", "unet/diffusion_pytorch_model.bin": b"x"}
    with in_this_process(tmp_path / "hf" / "hub") as hub:
        hub.repos[REPO] = files | beside
        yield hub


@pytest.fixture
def distil(rapm, tmp_path):
    """Distil that base; return the exit code and what was said."""
    (tmp_path / "prompts.txt").write_text("a red cube left of a blue sphere\na green cone\n")

    def distil(*more: str) -> tuple[int, str]:
        code, _, said = rapm("distill", "--base", REPO, *COUNTS, "--prompts", str(tmp_path / "prompts.txt"), *more)
        return code, said

    return distil


def asked(hub) -> set[str]:
    """The files that were asked for by name, of any commit."""
    paths = {request.partition("/resolve/")[2] for request in hub.requests} - {""}
    return {path.partition("/")[2] for path in paths}


def stop_when_it_stalls(hub) -> None:
    """Send this process SIGTERM when half of a stalled file has been sent."""
    while not hub.half_sent:
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)


def test_a_stopped_download_keeps_complete_files_and_a_second_run_asks_for_nothing(hub, distil, monkeypatch):
    hub.stalled = {UNET}
    stopper = threading.Thread(target=stop_when_it_stalls, args=(hub,), daemon=True)
    stopper.start()
    code, said = distil()
    assert code == 143, said
    stopper.join()
    assert f"the complete files of {REPO} are kept" in said
    came = asked(hub)
    assert UNET in came
    hub.stalled = set()
    hub.forget()

    code, said = distil()
    assert code == 0, said
    assert f"downloading {REPO}@{hub.commit(REPO)[:12]}: " in said
    assert "MB/s" in said
    assert asked(hub) & came == {UNET}
    needed = {name for name in hub.repos[REPO] if name.endswith((".json", ".fp16.safetensors"))}
    assert asked(hub) | came <= needed
    assert newest_run_with_lora(REPO).folder.parent == runs_dir()  # by the base's name, slash and all
    hub.forget()

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    code, said = distil("--new", "--offline")
    assert code == 0, said
    assert "MB/s" not in said
    assert hub.requests == []


def test_wrong_bytes_are_refused_and_the_right_ones_taken_later(hub, distil):
    hub.wrong = {UNET}
    code, said = distil()
    assert code == 3, said
    assert names(said.splitlines()[-1], "error:", UNET, REPO)
    hub.wrong = set()
    hub.forget()
    code, said = distil()
    assert code == 0, said
    assert hub.sent >= len(hub.repos[REPO][UNET])

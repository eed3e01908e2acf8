"""The authors' weights, from a hub on this machine, and the demo base in SDXL's place in a Hugging Face cache."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.bases.places import cache_dir
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.common.errors import WeightsError
from rapm_cli.formats.lora import load_lora
from rapm_cli.runs.authors_lora import FILE, REPO, authors_lora, converted_loras
from rapm_cli.runs.lock import locked
from tests.bases.hub_server import Seen, in_this_process
from tests.formats.test_lora import PROMPT, pipeline
from tests.messages import names
from tests.runs.test_convert import as_kohya, with_alphas


@pytest.fixture
def hub(tmp_path):
    with in_this_process(tmp_path / "hub") as hub:
        torch.save(with_alphas(as_kohya(load_lora(WEIGHTS / "rapm-demo.safetensors").state)), tmp_path / FILE)
        hub.repos[REPO] = {FILE: (tmp_path / FILE).read_bytes(), "README.md": b"words"}
        yield hub


def test_the_converted_file_is_kept_and_converted_again_where_it_is_damaged(hub):
    path, reason = authors_lora(Seen())
    assert names(reason, REPO)
    assert not any("README" in request for request in hub.requests)
    data, written = path.read_bytes(), path.stat().st_mtime_ns
    assert authors_lora(Seen()) == (path, reason)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert names(authors_lora(Seen())[1], path.parent, path.name, "sha256")
    assert path.read_bytes() == data
    assert converted_loras() == [path]


def test_a_file_that_is_not_to_be_had_names_its_command_and_the_base_that_needs_none(hub, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="sdxl") as caught:
        authors_lora(Seen())
    assert f"hf download {REPO} {FILE}" in caught.value.remedy
    assert "--base demo" in caught.value.remedy


def test_a_second_process_waits_for_the_conversion(hub):
    seen = Seen()
    with ThreadPoolExecutor(1) as pool:
        with locked(cache_dir() / "converted", Seen(), ""):
            waiting = pool.submit(authors_lora, seen)
            deadline = time.monotonic() + 20
            while not any("pid" in line for line in seen.said) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert converted_loras() == []
        assert waiting.result()[0].is_file()
    assert any("pid" in line for line in seen.said)


def lay_out(hub, repository, commit):
    """The place of a snapshot that is main, as huggingface_hub lays it out."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    return snapshot


@pytest.mark.slow
def test_generate_without_a_run_draws_what_the_authors_code_draws(tmp_path):
    sdxl = PUBLISHED["sdxl"]
    lay_out(tmp_path / "hub", sdxl.repo, sdxl.revision).symlink_to(WEIGHTS / "base", target_is_directory=True)
    snapshot = lay_out(tmp_path / "hub", REPO, "0" * 40)
    snapshot.mkdir()
    state = with_alphas(as_kohya(load_lora(WEIGHTS / "rapm-demo.safetensors").state))
    torch.save(state, snapshot / FILE)

    command = [sys.executable, "-m", "rapm_cli", "generate", PROMPT, "--steps", "4", "--seed", "50", "--offline"]
    done = subprocess.run(
        [*command, "--precision", "fp32", "--output", str(tmp_path / "pictures")],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()  # and nothing that other libraries say
    assert names(said[1], "sdxl", REPO)
    assert len(said) == 4
    assert names(said[-1], "1/1")
    ours = np.asarray(Image.open(tmp_path / "pictures" / "000-seed50.png"), dtype=int)

    pipe = pipeline(WEIGHTS / "base")
    pipe.load_lora_weights(dict(state))
    pipe.fuse_lora()
    generator = torch.Generator().manual_seed(50)
    theirs = pipe(prompt=PROMPT, generator=generator, num_inference_steps=4, guidance_scale=1.0).images[0]
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1

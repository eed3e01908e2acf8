"""The authors' weights, out of a Hugging Face cache laid out on disk with the demo base in SDXL's place."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.bases.sdxl import SDXL_ID
from rapm_cli.formats.lora import load_lora
from rapm_cli.workflows.authors import FILE, REPO, authors_lora, converted_loras
from tests.formats.test_convert import as_kohya, with_alphas
from tests.formats.test_lora import PROMPT, pipeline


def lay_out(hub, repository):
    """An empty snapshot of a repository, as huggingface_hub lays it out."""
    folder = hub / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.parent.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0" * 40)
    return snapshot


def test_the_converted_file_is_kept_and_converted_again_where_it_is_damaged(tmp_path, monkeypatch):
    source = tmp_path / FILE
    torch.save(with_alphas(as_kohya(load_lora(WEIGHTS / "rapm-demo.safetensors").state)), source)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: str(source))
    path, reason = authors_lora()
    assert reason == f"the authors' LoRA, {REPO}"
    data, written = path.read_bytes(), path.stat().st_mtime_ns
    assert authors_lora() == (path, reason)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert f"{path.parent} is damaged: lora.safetensors: its sha256 differs: converting" in authors_lora()[1]
    assert path.read_bytes() == data
    assert converted_loras() == [path]


@pytest.mark.slow
def test_generate_without_a_run_draws_what_the_authors_code_draws(tmp_path):
    lay_out(tmp_path / "hub", SDXL_ID).symlink_to(WEIGHTS / "base", target_is_directory=True)
    snapshot = lay_out(tmp_path / "hub", REPO)
    snapshot.mkdir()
    state = with_alphas(as_kohya(load_lora(WEIGHTS / "rapm-demo.safetensors").state))
    torch.save(state, snapshot / FILE)

    command = [sys.executable, "-m", "rapm_cli", "generate", PROMPT, "--steps", "4", "--seed", "50"]
    done = subprocess.run(
        [*command, "--precision", "fp32", "--output", str(tmp_path / "pictures")],
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = done.stderr.splitlines()  # and nothing that other libraries say
    assert said[0] == f"base sdxl, the authors' LoRA, {REPO}"
    assert len(said) == 2
    assert said[1].startswith("pictures 1/1")
    ours = np.asarray(Image.open(tmp_path / "pictures" / "000-seed50.png"), dtype=int)

    pipe = pipeline(WEIGHTS / "base")
    pipe.load_lora_weights(dict(state))
    pipe.fuse_lora()
    generator = torch.Generator().manual_seed(50)
    theirs = pipe(prompt=PROMPT, generator=generator, num_inference_steps=4, guidance_scale=1.0).images[0]
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1

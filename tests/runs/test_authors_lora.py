"""Pickled LoRAs under every form of keys keep their update; the authors' weights come from a hub on this machine.

The demo base stands in SDXL's place in a Hugging Face cache.
"""

import os
import pickle
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.bases.places import cache_dir
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.common.errors import InputError, WeightsError
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import load_lora
from rapm_cli.runs.authors_lora import FILE, REPO, authors_lora, convert_pickle, converted_loras
from rapm_cli.runs.lock import locked
from tests.bases.hub_server import Seen, in_this_process
from tests.formats.test_lora import PROMPT, pipeline
from tests.messages import names, naming

RANK, ALPHA = 8, 3.0


@pytest.fixture(scope="module")
def lora():
    """A LoRA of random numbers on the layers of the one that ships."""
    shipped, generator = load_lora(WEIGHTS / "rapm-demo.safetensors"), torch.Generator().manual_seed(0)
    state = {}
    for name, value in shipped.state.items():
        shape = (RANK, *value.shape[1:]) if ".lora_A." in name else (value.shape[0], RANK, *value.shape[2:])
        state[name] = torch.randn(shape, generator=generator)
    return replace(shipped, rank=RANK, alpha=float(RANK), state=state)


def as_peft(state):
    return {f"unet.{name}": value for name, value in state.items()}


def as_diffusers(state):
    return {
        name.replace(".lora_A.", ".lora.down.").replace(".lora_B.", ".lora.up."): v
        for name, v in as_peft(state).items()
    }


def as_kohya(state):
    """Replace dots by underscores, as PCM's converter does."""
    made = {}
    for name, value in state.items():
        module, half = name.removesuffix(".weight").rsplit(".lora_", 1)
        made[f"lora_unet_{module.replace('.', '_')}.lora_{'down' if half == 'A' else 'up'}.weight"] = value
    return made


def with_alphas(state):
    modules = {name.split(".")[0] for name in state}
    return state | {f"{module}.alpha": torch.tensor(ALPHA) for module in modules}


@pytest.mark.parametrize(
    ("form", "scale"),
    [
        (as_peft, 1),
        (as_diffusers, 1),
        (as_kohya, 1),
        (lambda state: with_alphas(as_kohya(state)), ALPHA / RANK),
    ],
    ids=["peft", "diffusers", "kohya", "kohya with alpha"],
)
def test_every_form_keeps_its_update(lora, tmp_path, form, scale):
    torch.save(form(lora.state), tmp_path / "lora.pt")
    convert_pickle(tmp_path / "lora.pt", tmp_path / "made" / "lora.safetensors", {"base": "sdxl"})
    made = load_lora(tmp_path / "made" / "lora.safetensors")
    assert (made.rank, made.alpha, made.recipe) == (RANK, RANK, {"base": "sdxl"})
    assert made.state.keys() == lora.state.keys()
    for name in (name for name in made.state if ".lora_A." in name):
        before, after = (
            lora_update(one.state[name], one.state[name.replace("_A.", "_B.")], share)
            for one, share in ((lora, scale), (made, 1.0))
        )
        torch.testing.assert_close(after, before)
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["lora.safetensors"]


class Trap:
    def __reduce__(self):
        return (open, ("trap-was-run", "w"))


def nan(state):
    return state | {next(iter(state)): torch.tensor(float("nan")).expand(8, 1)}


@pytest.mark.parametrize(
    ("spoil", "named"),
    [
        (lambda state: Trap(), ""),
        (lambda state: {}, ""),
        (lambda state: [1], ""),
        (lambda state: {"conv.weight": torch.zeros(2)}, ""),
        (nan, ".lora_A.weight"),
        (lambda state: state | {"unet.lora_": "text"}, "'unet.lora_'"),
        (lambda state: state | {7: torch.ones(2)}, "7"),
        (lambda state: state | {"unet.lora_": torch.eye(2).to_sparse()}, "'unet.lora_'"),
        (lambda state: state | {"unet.lora_": torch.tensor(1.0)}, "'unet.lora_'"),
        (lambda state: state | {"lora_unet_x.alpha": torch.ones(2)}, "(2,)"),
        (lambda state: state | {"text_encoder.q.lora_B.weight": torch.ones(8, 4)}, "text_encoder.q.lora_B.weight"),
        (lambda state: state | {"unet.x.lora_A.weight": torch.zeros(4, 4)}, " x"),
        (lambda state: state | {"unet.x.alpha": torch.tensor(1.0)}, " x"),
    ],
)
def test_files_that_are_not_plain_loras_are_refused(lora, tmp_path, monkeypatch, spoil, named):
    monkeypatch.chdir(tmp_path)
    torch.save(spoil(as_peft(lora.state)), tmp_path / "lora.pt")
    with pytest.raises(InputError) as caught:
        convert_pickle(tmp_path / "lora.pt", tmp_path / "lora.safetensors", {})
    assert named in caught.value.message
    assert str(tmp_path / "lora.pt") in caught.value.message
    assert [path.name for path in tmp_path.iterdir()] == ["lora.pt"]  # no trap was run, nothing was written


@pytest.mark.parametrize("data", [b"", b"version https://git-lfs.github.com/spec/v1\n", pickle.dumps(Trap())])
def test_a_damaged_pickle_is_refused(tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lora.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"lora\.pt"):
        convert_pickle(tmp_path / "lora.pt", tmp_path / "lora.safetensors", {})
    assert [path.name for path in tmp_path.iterdir()] == ["lora.pt"]


def test_a_torch_with_unsafe_pickles_is_refused_by_version(lora, tmp_path, monkeypatch):
    torch.save(as_kohya(lora.state), tmp_path / "lora.pt")
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    with pytest.raises(InputError, match=naming("2.9.1+cpu", "CVE-2026-24747")) as caught:
        convert_pickle(tmp_path / "lora.pt", tmp_path / "lora.safetensors", {})
    assert names(caught.value.remedy, "2.10")


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
def test_generate_without_a_run_samples_what_the_authors_code_samples(tmp_path):
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

"""The commands from end to end on small models of both families."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.cli.app import main
from rapm_cli.evaluate import contact_sheet
from rapm_cli.formats.lora import load_lora
from tests.bases.conftest import WRITERS, pipeline
from tests.bases.small_models import SIDE, edit
from tests.forked import Forked
from tests.messages import names

PROMPTS = ["a red cube", "a blue sphere at dawn"]
SHORT = ["--iterations", "2", "--trajectories", "2", "--fine-steps", "2", "--samples", "0", "--warmup", "0"]


@pytest.fixture(scope="module", params=WRITERS)
def made(request, originals, tmp_path_factory):
    """A short run on a folder of each family, in a home of its own."""
    place = tmp_path_factory.mktemp("made")
    (place / "prompts.txt").write_text("\n".join(PROMPTS))
    argv = ["--base", str(originals[request.param]), "--prompts", str(place / "prompts.txt"), *SHORT, "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(place / "home"))
        patch.setattr(contact_sheet, "COLUMNS", len(PROMPTS))
        assert main(["distill", *argv, "--output", str(place / "run")]) == 0
    return originals[request.param], place, argv


def test_a_run_trains_every_layer_and_shows_teacher_base_and_student(made):
    _, place, _ = made
    state = load_lora(place / "run" / "lora.safetensors").state
    modules = {name.split(".lora_")[0] for name in state}
    assert {"conv1", "proj_in", "to_q", "time_emb_proj"} <= {name.split(".")[-1] for name in modules}
    assert all(value.abs().max() > 0 for value in state.values())
    with Image.open(place / "run" / "sheet.png") as sheet:
        assert sheet.width >= len(PROMPTS) * SIDE
        assert sheet.height >= 3 * SIDE
        assert np.asarray(sheet).std() > 30


def test_a_run_that_is_gone_on_with_ends_as_one_that_was_not_stopped(made, rapm, monkeypatch, tmp_path):
    folder, place, argv = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    again = str(place / "again")
    assert rapm("distill", *argv, "--iterations", "1", "--output", again)[0] == 0
    copy = shutil.copytree(folder, tmp_path / "another-name")
    code, _, err = rapm("distill", "--resume", again, "--iterations", "2", "--base", str(copy), "--quiet")
    assert (code, err) == (0, "")  # the same bytes are the same base
    one, two = (load_lora(place / name / "lora.safetensors").state for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    moved = str(copy.rename(tmp_path / "moved"))
    code, _, err = rapm("distill", "--resume", again, "--iterations", "3", "--quiet")
    assert (code, names(err, copy, "--base")) == (3, True)
    edit(Path(moved), "scheduler/scheduler_config.json", prediction_type="v_prediction")
    code, _, err = rapm("distill", "--resume", again, "--iterations", "3", "--base", moved, "--quiet")
    assert (code, names(err, again, "moved")) == (2, True)


def test_a_runs_lora_samples_the_same_in_rapm_and_once_exported_in_diffusers(made, rapm, monkeypatch, tmp_path):
    folder, place, _ = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    run, exported = str(place / "run"), tmp_path / "mine.safetensors"
    assert rapm("generate", PROMPTS[0], "--lora", run, "--seed", "3", "--output", str(tmp_path))[0] == 0
    assert rapm("export", run, "--output", str(exported))[0] == 0
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=exported.name)
    generator = torch.Generator().manual_seed(3)
    theirs = pipe(PROMPTS[0], generator=generator, num_inference_steps=4, guidance_scale=1.0).images[0]
    ours = np.asarray(Image.open(tmp_path / "000-seed3.png"), dtype=int)
    assert np.abs(ours - np.asarray(theirs, dtype=int)).max() <= 1


def fresh(argv, environment):
    """A process that imports the libraries itself."""
    command = [sys.executable, "-m", "rapm_cli", *argv]
    return subprocess.Popen(command, env=os.environ | environment, stdout=-1, stderr=-1, text=True)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "start"), [("sdxl", fresh), ("sd15", Forked)])
def test_nothing_that_the_libraries_say_reaches_the_user(copy_of, tmp_path, family, start):
    folder = copy_of(family)
    edit(folder, "scheduler/scheduler_config.json", steps_offset=0, clip_sample=True)  # diffusers warns of both
    (tmp_path / "prompts.txt").write_text("red " * 100)
    argv = ["distill", "--base", str(folder), "--prompts", str(tmp_path / "prompts.txt"), *SHORT]
    process = start([*argv, "--quiet"], {"RAPM_HOME": str(tmp_path / "home")})
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert [line.split(":")[0] for line in said.splitlines()] == ["warning"]
    assert "red" in said

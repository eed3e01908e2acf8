"""A base with a LoRA in its weights draws by itself."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops
from safetensors.torch import load_file

from rapm_cli.bases import BASES
from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.cli.app import main
from rapm_cli.core.method.samplers import DDIM
from rapm_cli.formats.header import read_header
from rapm_cli.runs.fused_base import fused_base
from rapm_cli.runs.images import read_recipe
from tests.messages import names

PROMPT = "a large red cube left of a small blue sphere at dawn"


@pytest.fixture(scope="module")
def merged(tmp_path_factory):
    """The demo base with the LoRA that ships, as a folder."""
    folder = tmp_path_factory.mktemp("merged") / "four-steps"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(tmp_path_factory.mktemp("home")))
        assert main(["export", "--base", "demo", "--fuse", "--output", str(folder), "--quiet"]) == 0
    return folder


def drawn(rapm, output, *more):
    code, out, err = rapm("generate", "--output", str(output), *map(str, more))
    assert code == 0, err
    path = Path(out.split("  seed ")[0])
    with Image.open(path) as picture:
        return picture.convert("RGB"), path, err


def test_it_samples_what_base_and_lora_sample(rapm, merged, tmp_path):
    mine, path, err = drawn(rapm, tmp_path / "mine", PROMPT, "--base", merged)
    assert names(err, "four-steps", "LoRA")
    theirs, _, _ = drawn(rapm, tmp_path / "theirs", PROMPT, "--base", "demo")
    assert max(high for _, high in ImageChops.difference(mine, theirs).getextrema()) <= 1
    assert read_recipe(path)["lora_sha256"] == ""
    assert read_recipe(path)["sampler"]["timesteps"] == [999, 749, 499, 249]
    again, _, _ = drawn(rapm, tmp_path / "again", "--from", path, "--base", merged)
    assert again.tobytes() == mine.tobytes()
    code, out, _ = rapm("inspect", str(path), "--json")
    assert json.loads(out)["again"] == f"rapm generate --from {path} --base four-steps"
    for base in ([], ["--base", "demo"]):
        code, out, err = rapm("generate", "--from", str(path), *base, "--output", str(tmp_path / "no"))
        assert (code, out) == (3, "")
        assert names(err, "four-steps", "--base")


def test_transformers_4_finds_its_names_and_files_in_the_folder(merged):
    for part in ("tokenizer", "tokenizer_2"):
        model = json.loads((merged / part / "tokenizer.json").read_text())["model"]
        assert json.loads((merged / part / "vocab.json").read_text()) == model["vocab"]
        pairs = [tuple(line.split(" ")) for line in (merged / part / "merges.txt").read_text().splitlines()[1:]]
        assert pairs == [tuple(pair) for pair in model["merges"]]
    for part in ("text_encoder", "text_encoder_2"):
        ours, theirs = (load_file(place / part / "model.safetensors") for place in (merged, WEIGHTS / "base"))
        named = {name if name.startswith("text_") else f"text_model.{name}": value for name, value in theirs.items()}
        assert ours.keys() == named.keys()
        assert all(torch.equal(value, named[name]) for name, value in ours.items())


@pytest.mark.parametrize(
    ("command", "named"),
    [
        (["generate", PROMPT, "--compare"], "--compare"),
        (["eval", "--samples", "8"], "four-steps"),
        (["export"], "four-steps"),
        (["distill", "--dry-run"], "LoRA"),
    ],
)
def test_what_needs_its_teacher_is_refused(rapm, merged, tmp_path, command, named):
    code, out, err = rapm(*command, "--base", str(merged), "--output", str(tmp_path / "out"))
    assert code in (2, 3)
    assert out == ""
    assert names(err, named)


def test_a_recipe_that_is_none_is_refused(rapm, merged, tmp_path):
    said = (merged / "rapm_recipe.json").read_bytes()
    (merged / "rapm_recipe.json").write_text('{"sampler": 7}')
    code, _, err = rapm("generate", PROMPT, "--base", str(merged), "--output", str(tmp_path))
    (merged / "rapm_recipe.json").write_bytes(said)
    assert code == 3
    assert names(err, "recipe")


def test_a_checkpoint_says_it_too(rapm, tmp_path):
    path = tmp_path / "four-steps.safetensors"
    assert rapm("export", "--base", "demo", "--fuse", "--single-file", "--output", str(path))[0] == 0
    made = fused_base(dataclasses.replace(BASES["demo"], name="four-steps", source=str(path)))
    assert (made.steps, made.sampler) == (4, DDIM)
    assert fused_base(dataclasses.replace(BASES["demo"], source=str(path))).steps == 4  # whatever its name
    assert fused_base(BASES["demo"]) is None
    assert fused_base(dataclasses.replace(BASES["demo"], name="plain", source=str(WEIGHTS / "base"))) is None


def test_an_export_is_taken_for_its_lora_and_its_header_has_its_name(rapm, tmp_path):
    assert rapm("export", "--base", "demo", "--output", str(tmp_path / "mine"))[0] == 0
    one = tmp_path / "one.safetensors"
    assert rapm("export", str(tmp_path / "mine"), "--base", "demo", "--format", "kohya", "--output", str(one))[0] == 0
    assert read_header(one).metadata["ss_output_name"] == "one"
    assert read_header(tmp_path / "mine" / "mine-kohya.safetensors").metadata["ss_output_name"] == "mine-kohya"

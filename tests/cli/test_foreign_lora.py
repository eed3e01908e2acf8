"""A LoRA under kohya's keys, through the commands, beside the same LoRA as rapm writes it."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import load_lora
from tests.formats.lora_forms import kohya_sgm, write
from tests.messages import names

PROMPT = "a large red cube left of a small blue sphere at dawn"


@pytest.fixture
def kohya(tmp_path, shipped_lora):
    """The shipped LoRA as kohya's trainer writes one, with its strength in alphas."""
    lora = load_lora(shipped_lora)
    halves = {module: [lora.state[f"{module}.lora_{half}.weight"] for half in "AB"] for module in lora.modules}
    return str(write(tmp_path / "kohya.safetensors", halves, kohya_sgm, alphas=lora.alpha))


def draw(rapm, tmp_path, *argv):
    code, out, err = rapm("generate", PROMPT, "--json", "--output", str(tmp_path / "pictures"), *argv)
    assert code == 0, err
    return np.asarray(Image.open(json.loads(out)[0]["path"]), dtype=int), err


def test_generate_samples_the_same_image_on_a_base_in_a_folder(rapm, tmp_path, kohya, shipped_lora):
    own, _ = draw(rapm, tmp_path, "--base", "demo", "--lora", str(shipped_lora))
    foreign, err = draw(rapm, tmp_path, "--base", str(WEIGHTS / "base"), "--lora", kohya)
    assert np.abs(own - foreign).max() <= 1
    assert names(err, kohya, "DDIM", "trailing", 4)


def test_export_writes_it_anew_for_every_command(rapm, tmp_path, kohya, shipped_lora):
    assert json.loads(rapm("inspect", kohya, "--json")[1])["form"] == "kohya, by the blocks of SDXL's original code"
    target = str(tmp_path / "again.safetensors")
    assert rapm("export", kohya, "--base", "demo", "--format", "diffusers", "--output", target)[0] == 0
    facts = json.loads(rapm("inspect", target, "--json")[1])
    own = json.loads(rapm("inspect", str(shipped_lora), "--json")[1])
    assert all(facts[name] == own[name] for name in ("modules", "blocks", "parameters", "rank"))
    assert (facts["scale"], facts["recipe"]) == (1, {})


def test_our_own_file_is_exported_with_the_same_bits(rapm, tmp_path, shipped_lora):
    again = tmp_path / "again.safetensors"
    argv = ("export", str(shipped_lora), "--base", "demo", "--format", "diffusers", "--output", str(again))
    assert rapm(*argv)[0] == 0
    assert read_header(again) == read_header(shipped_lora)  # safetensors writes the metadata in any order
    assert load_lora(again).digest() == load_lora(shipped_lora).digest()


def test_a_lora_for_other_layers_than_the_base_has_is_refused(rapm, tmp_path):
    name, path = "lora_unet_down_blocks_7_resnets_0_conv1", str(tmp_path / "other.safetensors")
    halves = {f"{name}.lora_down.weight": torch.ones(1, 4, 3, 3), f"{name}.lora_up.weight": torch.ones(8, 1, 1, 1)}
    save_file(halves, path)
    for argv in (("generate", PROMPT, "--lora", path), ("export", path, "--fuse")):
        code, _, err = rapm(*argv, "--base", "demo", "--output", str(tmp_path / argv[0]))
        assert code == 3, err
        assert "down_blocks.7.resnets.0.conv1" in err


def test_a_part_for_a_text_encoder_is_refused(rapm, tmp_path, kohya):
    name = "lora_te1_text_model_encoder_layers_0_mlp_fc1"
    part = {f"{name}.lora_down.weight": torch.ones(2, 4), f"{name}.lora_up.weight": torch.ones(4, 2)}
    save_file(load_file(kohya) | part, kohya)
    code, _, err = rapm("generate", PROMPT, "--base", "demo", "--lora", kohya)
    assert code == 3
    assert names(err, f"'{name}.lora_up.weight'")


@pytest.mark.parametrize("ending", [".pt", ".bin", ".ckpt"])
def test_a_pickle_is_refused_with_the_way_out(rapm, tmp_path, ending):
    torch.save({"lora_unet_conv_in.alpha": torch.ones(1)}, tmp_path / f"lora{ending}")
    code, _, err = rapm("generate", PROMPT, "--base", "demo", "--lora", str(tmp_path / f"lora{ending}"))
    assert code == 3
    assert names(err, f"lora{ending}", "safetensors")


@pytest.mark.slow
def test_eval_compares_it_with_the_usual_teacher(rapm, kohya):
    code, out, err = rapm("eval", "--base", "demo", "--lora", kohya, "--samples", "8", "--split", "seen", "--json")
    assert code == 0, err
    assert names(err, kohya, "teacher", "demo")
    rows = json.loads(out)["parts"][0]["rows"]
    assert [row["name"] for row in rows] == ["teacher, 40 steps", "base, 4 steps", "student, 4 steps"]

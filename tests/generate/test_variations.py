"""Images with other LoRAs, weights and samplers, and the same images again from their PNGs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rapm_cli.formats.lora import load_lora, save_lora
from rapm_cli.formats.lora_stack import stack_loras
from rapm_cli.runs.images import read_recipe
from tests.messages import names
from tests.style_lora import write_style


@pytest.fixture
def loras(tmp_path, small_folder, small_demo):
    """A few-step LoRA of another program, which names its method, and one of a style."""
    folder = tmp_path / "loras"
    folder.mkdir()
    return (
        write_style(folder / "sdxl_tcd_4step.safetensors", small_folder, seed=3),
        write_style(folder / "style.safetensors", small_folder),
    )


@pytest.fixture
def draw(rapm, tmp_path):
    def run(*argv, code=0):
        found, out, err = rapm("generate", "--json", "--output", str(tmp_path / "pictures"), *argv)
        assert found == code, err
        return (Path(json.loads(out)[0]["path"]) if code == 0 else None), err

    return run


def pixels(path):
    return np.asarray(Image.open(path), dtype=int)


def test_others_and_weights_are_the_sum_of_all_updates_and_come_again_from_the_png(draw, loras, tmp_path):
    few, style = loras
    base = ("--base", "demo", "--lora")
    made, _ = draw("a red cube", *base, str(few), "--with-lora", f"{style}:0.5", "--lora-weight", "0.8")
    stacked = tmp_path / "loras" / "stacked_tcd_4step.safetensors"
    save_lora(stacked, stack_loras([(load_lora(few), 0.8), (load_lora(style), 0.5)]))
    same, _ = draw("a red cube", *base, str(stacked))
    bare, _ = draw("a red cube", *base, str(few))
    assert np.abs(pixels(made) - pixels(same)).max() <= 1
    assert np.abs(pixels(made) - pixels(bare)).max() > 1
    recipe = read_recipe(made)
    assert (recipe["lora_weight"], recipe["sampler"]["name"], recipe["steps"]) == (0.8, "tcd", 4)
    assert [(one["name"], one["weight"]) for one in recipe["base_loras"]] == [("style.safetensors", 0.5)]
    assert str(tmp_path) not in json.dumps(recipe)
    again = ("--from", str(made), "--lora", str(few))
    beside, _ = draw(*again)  # the style lies beside the few-step LoRA
    assert np.array_equal(pixels(beside), pixels(made))
    moved = shutil.move(style, tmp_path / "elsewhere.safetensors")
    _, err = draw(*again, code=3)
    assert names(err, "style.safetensors")
    found, _ = draw(*again, "--with-lora", str(moved))
    assert np.array_equal(pixels(found), pixels(made))


@pytest.mark.parametrize("sampler", ["euler", "lcm"])
def test_a_sampler_and_steps_are_the_users_and_come_again(draw, loras, sampler):
    _, style = loras
    made, _ = draw("a cube", "--base", "demo", "--lora", str(style), "--sampler", sampler, "--steps", "2")
    usual, err = draw("a cube", "--base", "demo", "--lora", str(style), "--steps", "2")
    assert names(err, style, "DDIM")
    assert (pixels(made) != pixels(usual)).any()  # Euler's last step alone is not DDIM's
    again, _ = draw("--from", str(made), "--lora", str(style))
    assert np.array_equal(pixels(again), pixels(made))
    draw("--from", str(made), "--lora", str(style), "--sampler", sampler, code=2)


def test_a_recipe_of_a_stranger_cannot_name_paths_or_samplers(draw, loras, tmp_path):
    from rapm_cli.core.common.errors import InputError
    from rapm_cli.runs.images import save_png

    made, _ = draw("a cube", "--base", "demo", "--lora", str(loras[1]))
    recipe = read_recipe(made)
    for name, value in (
        ("base_loras", [{"name": "../x", "sha256": "0" * 64, "weight": 1}]),
        ("base_loras", [{"name": "x", "sha256": "0" * 64, "weight": float("nan")}]),
        ("lora_weight", "1"),
        ("sampler", {"name": ["tcd"]}),
    ):
        save_png(Image.open(made), tmp_path / "odd.png", recipe | {name: value})
        with pytest.raises(InputError):
            read_recipe(tmp_path / "odd.png")

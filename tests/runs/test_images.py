import pytest
import torch
from PIL import Image

from rapm_cli.core.common.errors import InputError
from rapm_cli.runs.images import contact_sheet, grid, read_recipe, save_png, to_image
from rapm_cli.runs.prompts import LAST_SEED
from tests.messages import naming

RECIPE = {"prompt": "a <b>cube</b> [31m 立方体", "seed": 7, "steps": 4, "base": "demo"}
RECIPE |= {"precision": "fp32", "lora_sha256": "0" * 64}


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    save_png(to_image(torch.rand(3, 8, 8)), tmp_path / "a.png", RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE


def test_pixels_are_rounded_not_cut_off():
    image = to_image(torch.full((3, 1, 1), 100.6 / 255))
    assert image.getpixel((0, 0)) == (101, 101, 101)


def test_images_of_other_programs_are_refused(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    save_png(Image.new("RGB", (8, 8)), tmp_path / "odd.png", RECIPE | {"seed": "seven"})
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(InputError, match=naming("odd.png")):
        read_recipe(tmp_path / "odd.png")
    for name in ("plain.png", "text.png", "none.png"):
        with pytest.raises(InputError, match=naming(name)):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "value", "named"),
    [
        ("seed", 10**39, 10**39),
        ("seed", -3, -3),
        ("seed", 2**64, 2**64),
        ("steps", 0, "steps"),
        ("steps", 10**9, 10**9),
        ("precision", "fp8", "'fp8'"),
        ("rng", ["x"], "rng"),
        ("prompt", "", "prompt"),
        ("prompt", "a" * 100_000, "100,000"),
        ("prompt", "a\x1b[31m", "prompt"),
    ],
)
def test_a_recipe_with_values_that_rapm_never_writes_is_refused(tmp_path, name, value, named):
    save_png(Image.new("RGB", (8, 8)), tmp_path / "odd.png", {"rng": "cpu"} | RECIPE | {name: value})
    with pytest.raises(InputError, match=naming("odd.png", named)) as refused:
        read_recipe(tmp_path / "odd.png")
    assert len(refused.value.message) < 150


def test_a_recipe_with_the_last_seed_is_read(tmp_path):
    save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", RECIPE | {"prompt": "a", "seed": LAST_SEED})
    assert read_recipe(tmp_path / "a.png")["seed"] == 2**64 - 1
    torch.Generator().manual_seed(LAST_SEED)


def test_a_grid_keeps_every_picture():
    images = [Image.new("RGB", (10, 10), (k, 0, 0)) for k in range(1, 6)]
    sheet = grid(images, columns=3)
    assert {sheet.getpixel((k % 3 * 16 + 5, k // 3 * 16 + 5))[0] for k in range(5)} == {1, 2, 3, 4, 5}


def test_a_contact_sheet_has_a_row_for_each_title():
    rows = {"teacher": torch.zeros(4, 3, 16, 16), "student": torch.ones(4, 3, 16, 16)}
    sheet = contact_sheet(rows)
    column = [sheet.getpixel((12, y)) for y in range(sheet.height)]
    assert (0, 0, 0) in column
    assert (255, 255, 255) in column
    assert column.index((0, 0, 0)) < column.index((255, 255, 255))

import pytest
import torch
from PIL import Image

from rapm_cli.bases import BASES
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.png import read_png
from rapm_cli.runs.images import PAPER, contact_sheet, grid, read_recipe, save_png, to_image
from rapm_cli.runs.prompts import LAST_SEED
from rapm_cli.runs.resolve_lora import read_image_recipe
from tests.messages import naming

OUT = Output(quiet=True)
RECIPE = {"prompt": "a <b>cube</b> [31m 立方体", "seed": 7, "steps": 4, "base": "demo"}
RECIPE |= {"precision": "fp32", "lora_sha256": "0" * 64}


def test_a_recipe_comes_back_as_it_was_written(tmp_path):
    save_png(to_image(torch.rand(3, 8, 8)), tmp_path / "a.png", RECIPE)
    assert read_recipe(tmp_path / "a.png") == RECIPE


@pytest.mark.parametrize(("scheduler", "sampler"), [(None, "Euler"), ("DDIM", "Euler"), ("LCM", "LCM")])
def test_a1111_gets_a_sampler_and_a_schedule_that_it_has(tmp_path, scheduler, sampler):
    """A1111 reads the last line: names and values, of which at least three; its own DDIM has no schedule."""
    recipe = RECIPE | {"sampler": {"scheduler": scheduler} if scheduler else {}}
    save_png(Image.new("RGB", (2 * 8 + 6, 8 + 20)), tmp_path / "compare.png", recipe, size=(8, 8))
    prompt, settings = read_png(tmp_path / "compare.png").texts["parameters"].split("\n")
    assert prompt == RECIPE["prompt"]
    assert [setting.split(": ") for setting in settings.split(", ")] == [
        ["Steps", "4"], ["Sampler", sampler], ["Schedule type", "SGM Uniform"], ["CFG scale", "1"], ["Seed", "7"],
        ["Size", "8x8"],
    ]  # fmt: skip


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


def test_an_image_of_the_lora_that_shipped_under_another_header_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RAPM_HOME", str(tmp_path))
    for sha256 in BASES["demo"].former_students:
        save_png(Image.new("RGB", (8, 8)), tmp_path / "a.png", RECIPE | {"lora_sha256": sha256})
        assert read_image_recipe(tmp_path / "a.png", None, OUT).lora == BASES["demo"].student
        with pytest.raises(InputError, match=naming(tmp_path / "a.png")):
            read_image_recipe(tmp_path / "a.png", str(tmp_path / "a.png"), OUT)


@pytest.mark.parametrize("side", [16, 128, 1024])
def test_captions_stand_above_their_images_and_change_no_pixel_of_them(side):
    images = [Image.new("RGB", (side, side), (k, 0, 0)) for k in range(3)]
    plain, labelled = grid(images, 3), grid(images, 3, ["a short one", "a long prompt " * 30, "x" * 500])
    below = labelled.crop((0, labelled.height - side, labelled.width, labelled.height))
    assert below.tobytes() == plain.tobytes()
    above = labelled.crop((0, 0, labelled.width, labelled.height - side))
    assert min(above.convert("L").tobytes()) < 100  # ink
    for k in range(2):  # none reaches into the next column
        gap = above.crop((k * (side + 6) + side + 1, 0, (k + 1) * (side + 6) - 1, above.height))
        assert [colour for _, colour in gap.getcolors()] == [PAPER]


def test_letters_grow_with_the_images_so_that_a_shrunk_sheet_can_be_read():
    heights = [grid([Image.new("RGB", (side, side))], 1, ["a cat"]).height - side for side in (64, 384, 1536)]
    assert heights[0] == heights[1]
    assert heights[2] > 3 * heights[1]


def test_a_contact_sheet_has_the_prompts_above_its_columns():
    rows = {"teacher": torch.zeros(2, 3, 128, 128), "student": torch.ones(2, 3, 128, 128)}
    plain, labelled = contact_sheet(rows), contact_sheet(rows, ["a cat", "a dog"])
    more = labelled.height - plain.height
    assert more > 0
    same = (
        labelled.crop((6, 6 + more, plain.width - 6, labelled.height)),
        plain.crop((6, 6, plain.width - 6, plain.height)),
    )
    assert same[0].tobytes() == same[1].tobytes()

"""Images: PNG files with their recipe, grids and contact sheets."""

import io
import json
from collections.abc import Container, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rapm_cli.core.common.errors import DiskError, InputError
from rapm_cli.core.storage.files import replace_file
from rapm_cli.formats.png import RECIPE_KEY, read_png
from rapm_cli.runs.prompts import LAST_SEED, check_prompt

REQUIRED = {"prompt": str, "seed": int, "steps": int, "base": str, "precision": str, "lora_sha256": str}
ALLOWED: dict[str, Container[Any]] = {  # values of a recipe
    "seed": range(LAST_SEED + 1),
    "steps": range(1, 1001),
    "precision": ("fp32", "bf16", "fp16"),
    "rng": ("cpu", "cuda", "mps"),
}
SHOWN = 60  # characters of a refused value
GAP, LABEL_PX, INK, PAPER = 6, 22, (30, 30, 34), (250, 250, 248)


def to_image(pixels: Tensor) -> Image.Image:
    """Round a (3, H, W) image in [0, 1] to 8 bits."""
    return Image.fromarray(pixels.mul(255).round().byte().permute(1, 2, 0).numpy())


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """Encode an image as PNG, with its text chunks."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, recipe: dict[str, Any]) -> None:
    """Write a PNG whole or not at all, with its recipe as JSON for rapm and as text for other programs.

    Args:
        image: Image to write.
        path: File to write.
        recipe: How the image was made, as JSON values; prompt, seed, steps and sampler become the text.

    Raises:
        DiskError: The file cannot be written.
    """
    info = PngInfo()
    info.add_text(RECIPE_KEY, json.dumps(recipe, sort_keys=True))
    if "prompt" in recipe:
        sampler = "DDIM trailing" if recipe.get("sampler", {}).get("scheduler", "DDIM") == "DDIM" else "LCM"
        settings = f"Steps: {recipe['steps']}, Sampler: {sampler}, CFG scale: 1, Seed: {recipe['seed']}"
        info.add_itxt("parameters", f"{recipe['prompt']}\n{settings}")
    try:
        replace_file(path, png_bytes(image, info))
    except OSError as error:
        raise DiskError.of(error, path) from error


def read_recipe(path: Path) -> dict[str, Any]:
    """Read the recipe of a PNG that rapm wrote.

    Raises:
        InputError: The file is no whole PNG, or has no recipe of rapm, or one with values that rapm never writes.
    """
    try:
        recipe = json.loads(read_png(path).texts.get(RECIPE_KEY, ""))
    except (ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or any(type(recipe.get(name)) is not kind for name, kind in REQUIRED.items()):
        raise InputError(f"{path} has no recipe of rapm", "give a PNG that rapm generate wrote")
    check_prompt(recipe["prompt"], f"the prompt of {path}")
    for name, allowed in ALLOWED.items():
        if name in recipe and recipe[name] not in allowed:
            found = repr(recipe[name])[:SHOWN]
            raise InputError(f"{path} has a recipe with {name} {found}", "give a PNG that rapm generate wrote")
    return recipe


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Place images of one size side by side, row by row."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), PAPER)
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * (width + GAP), k // columns * (height + GAP)))
    return sheet


def contact_sheet(rows: dict[str, Tensor]) -> Image.Image:
    """Place one titled row of images for each entry.

    Args:
        rows: Title to (B, 3, H, W) images in [0, 1], all of one shape; images of one column share prompt and noise.
    """
    font = ImageFont.load_default(size=14)
    strips = [grid([to_image(pixels) for pixels in row], len(row)) for row in rows.values()]
    width, height = strips[0].size
    sheet = Image.new("RGB", (width + 2 * GAP, len(strips) * (height + LABEL_PX + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, (title, strip) in enumerate(zip(rows, strips, strict=True)):
        top = GAP + k * (height + LABEL_PX + GAP)
        pen.text((GAP, top), title, fill=INK, font=font)
        sheet.paste(strip, (GAP, top + LABEL_PX))
    return sheet

"""Latents to pictures on disk: PNGs with their recipe, grids and contact sheets."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rapm_cli.core.common.errors import DiskError, InputError
from rapm_cli.core.storage.files import regular_file, replace_file

RECIPE_KEY = "rapm"
RECIPE = {"prompt": str, "seed": int, "steps": int, "base": str, "precision": str, "lora_sha256": str}  # at least
GAP, LABEL_PX, INK, PAPER = 6, 22, (30, 30, 34), (250, 250, 248)


def to_image(picture: Tensor) -> Image.Image:
    """(3, H, W) in [0, 1] to an 8-bit image, rounded."""
    return Image.fromarray(picture.mul(255).round().byte().permute(1, 2, 0).numpy())


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """The file of an image, with what it says of itself."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, recipe: dict[str, Any]) -> None:
    """Write a PNG, whole or not at all; it says how it was made, as JSON for rapm and as text for other programs.

    Raises:
        DiskError: It cannot be written.
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
    """How a picture of ours was made.

    Raises:
        InputError: It is no picture, or not one of ours.
    """
    regular_file(path, "give a PNG that rapm generate wrote")
    try:
        with Image.open(path) as image:
            text = image.info.get(RECIPE_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path} cannot be read as a picture", "give a PNG that rapm generate wrote") from error
    try:
        recipe = json.loads(text or "")
    except (TypeError, ValueError, RecursionError):
        recipe = None
    if not isinstance(recipe, dict) or any(type(recipe.get(name)) is not kind for name, kind in RECIPE.items()):
        raise InputError(f"{path} does not say how it was made", "give a PNG that rapm generate wrote")
    return recipe


def grid(images: Sequence[Image.Image], columns: int) -> Image.Image:
    """Images of one size side by side, row by row."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + GAP) - GAP, rows * (height + GAP) - GAP), PAPER)
    for k, image in enumerate(images):
        sheet.paste(image, (k % columns * (width + GAP), k // columns * (height + GAP)))
    return sheet


def contact_sheet(rows: dict[str, Tensor]) -> Image.Image:
    """One titled row of pictures for each entry; columns share prompt and noise.

    Args:
        rows: Title to (B, 3, H, W) pictures in [0, 1], all of one shape.
    """
    font = ImageFont.load_default(size=14)
    strips = [grid([to_image(picture) for picture in pictures], len(pictures)) for pictures in rows.values()]
    width, height = strips[0].size
    sheet = Image.new("RGB", (width + 2 * GAP, len(strips) * (height + LABEL_PX + GAP) + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    for k, (title, strip) in enumerate(zip(rows, strips, strict=True)):
        top = GAP + k * (height + LABEL_PX + GAP)
        pen.text((GAP, top), title, fill=INK, font=font)
        sheet.paste(strip, (GAP, top + LABEL_PX))
    return sheet

"""Images: PNG files with their recipe, grids and contact sheets."""

import io
import json
from collections import deque
from collections.abc import Container, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rapm_cli.core.common.errors import DiskError, InputError
from rapm_cli.core.method.sizes import NAME
from rapm_cli.core.storage.files import replace_file
from rapm_cli.formats.lora_ref import are_records
from rapm_cli.formats.png import RECIPE_KEY, read_png
from rapm_cli.formats.sampling_advice import infotext
from rapm_cli.runs.prompts import LAST_SEED, check_prompt


class _Sizes:
    """All names of sizes."""

    def __contains__(self, value: object) -> bool:
        return isinstance(value, str) and NAME.fullmatch(value) is not None


REQUIRED = {"prompt": str, "seed": int, "steps": int, "base": str, "precision": str, "lora_sha256": str}
ALLOWED: dict[str, Container[Any]] = {  # values of a recipe
    "seed": range(LAST_SEED + 1),
    "steps": range(1, 1001),
    "precision": ("fp32", "bf16", "fp16"),
    "rng": ("cpu", "cuda", "mps"),
    "size": _Sizes(),
}
SHOWN = 60  # characters of a refused value
GAP, INK, PAPER = 6, (30, 30, 34), (250, 250, 248)
TITLE_PX, LABEL_PX, CAPTION_PX = 14, 22, 12  # a title's letters, its strip, and a caption's letters
USUAL_SIDE = 384  # pixels of an image from which letters grow with it, so that a sheet of large images can be read
MAX_LINES, ELLIPSIS = 6, "..."  # of a caption


def to_image(pixels: Tensor) -> Image.Image:
    """Round a (3, H, W) image in [0, 1] to 8 bits."""
    return Image.fromarray(pixels.mul(255).round().byte().permute(1, 2, 0).numpy())


def png_bytes(image: Image.Image, info: PngInfo | None = None) -> bytes:
    """Encode an image as PNG, with its text chunks."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(image: Image.Image, path: Path, recipe: dict[str, Any], size: tuple[int, int] | None = None) -> None:
    """Write a PNG whole or not at all, with its recipe as JSON for rapm and as text for other programs.

    Args:
        image: Image to write.
        path: File to write.
        recipe: How the image was made, as JSON values; prompt, seed, steps and sampler become the text.
        size: Width and height of what the student sampled, if the image shows more than that.

    Raises:
        DiskError: The file cannot be written.
    """
    info = PngInfo()
    info.add_text(RECIPE_KEY, json.dumps(recipe, sort_keys=True))
    if "prompt" in recipe:
        info.add_itxt("parameters", infotext(recipe, size or image.size))
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
    is_sound = are_records(recipe.get("base_loras", [])) and type(recipe.get("lora_weight", 1)) in (int, float)
    sampler = recipe.get("sampler", {})
    if not (is_sound and isinstance(sampler, dict) and isinstance(sampler.get("name", ""), str)):
        raise InputError(f"{path} has a recipe with other LoRAs or samplers", "give a PNG that rapm generate wrote")
    for name, allowed in ALLOWED.items():
        if name in recipe and recipe[name] not in allowed:
            found = repr(recipe[name])[:SHOWN]
            raise InputError(f"{path} has a recipe with {name} {found}", "give a PNG that rapm generate wrote")
    return recipe


def grid(images: Sequence[Image.Image], columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """Place images of one size side by side, row by row.

    Args:
        images: The images.
        columns: Number of images in a row.
        captions: Text above each image; none for no texts.
    """
    rows = [range(k, min(k + columns, len(images))) for k in range(0, len(images), columns)]
    width = columns * (images[0].width + GAP) - GAP
    strips = []
    for row in rows:
        strips += [_captions([captions[k] for k in row], [images[k].width for k in row])] if captions else []
        strips += [_row([images[k] for k in row], width)]
    return _stacked(strips)


def contact_sheet(rows: Mapping[str, Sequence[Tensor]], captions: Sequence[str] = ()) -> Image.Image:
    """Place one titled row of images for each entry.

    Args:
        rows: Title to B images (3, H, W) in [0, 1]; images of one column share size, prompt and noise.
        captions: B prompts, which stand above the columns; none for no texts.
    """
    made = {title: [to_image(pixels) for pixels in row] for title, row in rows.items()}
    widths = [image.width for image in next(iter(made.values()))]
    side, strips = min(widths), [_captions(captions, widths)] if captions else []
    for title, images in made.items():
        strip = _row(images)
        strips.append(_stacked([_title(title, strip.width, side), strip], gap=0))
    sheet = _stacked(strips)
    return ImageOps.expand(sheet, GAP, PAPER)


def _row(images: Sequence[Image.Image], width: int | None = None) -> Image.Image:
    """Place images side by side, on paper of that width."""
    lefts = _lefts([image.width for image in images])
    size = width or lefts[-1] - GAP, max(image.height for image in images)
    strip = Image.new("RGB", size, PAPER)
    for left, image in zip(lefts, images, strict=False):
        strip.paste(image, (left, 0))
    return strip


def _lefts(widths: Sequence[int]) -> list[int]:
    """Return where columns of these widths begin, and where a further one would."""
    return list(accumulate((width + GAP for width in widths), initial=0))


def _stacked(strips: Sequence[Image.Image], gap: int = GAP) -> Image.Image:
    """Place strips below each other."""
    height = sum(strip.height + gap for strip in strips) - gap
    sheet, top = Image.new("RGB", (max(strip.width for strip in strips), height), PAPER), 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height + gap
    return sheet


def _title(text: str, width: int, side: int) -> Image.Image:
    """Return a strip with the title of a row of images that are `side` pixels wide."""
    font = _font(TITLE_PX, side)
    strip = Image.new("RGB", (width, round(LABEL_PX * font.size / TITLE_PX)), PAPER)
    ImageDraw.Draw(strip).text((0, 0), text, fill=INK, font=font)
    return strip


def _captions(texts: Sequence[str], widths: Sequence[int]) -> Image.Image:
    """Return a strip of texts, each in lines as wide as its column, as high as the longest of them."""
    font, lefts = _font(CAPTION_PX, min(widths)), _lefts(widths)
    blocks = [_lines(text, font, width) for text, width in zip(texts, widths, strict=True)]
    step = round(1.3 * font.size)
    strip = Image.new("RGB", (lefts[-1] - GAP, max(map(len, blocks)) * step), PAPER)
    pen = ImageDraw.Draw(strip)
    for left, lines in zip(lefts, blocks, strict=False):
        for number, line in enumerate(lines):
            pen.text((left, number * step), line, fill=INK, font=font)
    return strip


def _lines(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break a text into at most `MAX_LINES` lines of some pixels; what does not fit is cut off with an ellipsis."""
    lines, words = [""], deque(text.split())
    while words:
        word = words.popleft()
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
        elif lines[-1] and len(lines) < MAX_LINES:
            lines.append("")
            words.appendleft(word)
        else:  # the last line is full, or the word is wider than a line
            rest = _fitting(f"{longer}{ELLIPSIS if words else ''}", font, width)
            return [*lines[:-1], rest]
    return lines


def _fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """Return the beginning of a text that fits into some pixels, with an ellipsis where it is cut off."""
    if font.getlength(text) <= width:
        return text
    kept = next((k for k in range(len(text), 0, -1) if font.getlength(text[:k] + ELLIPSIS) <= width), 0)
    return text[:kept].rstrip() + ELLIPSIS


def _font(size: int, side: int) -> ImageFont.FreeTypeFont:
    """Return the font of a size, larger for images that are wider than `USUAL_SIDE` pixels."""
    font = ImageFont.load_default(size=round(size * max(1.0, side / USUAL_SIDE)))
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font

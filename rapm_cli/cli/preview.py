"""Images in the terminal: each character shows two pixels."""

import warnings
from pathlib import Path

from rich.color import Color
from rich.style import Style
from rich.text import Text

from rapm_cli.core.common.errors import InputError

HALF = "▀"  # the upper half has the text colour, the lower half the background colour
MAX_COLUMNS = 64
MAX_ROWS = 48  # of the terminal
MAX_PIXELS = 2**25  # of the file: an image is decoded as a whole, in 4 bytes a pixel


def preview(path: Path, columns: int) -> Text:
    """Return an image as lines of half blocks.

    Args:
        path: Image file.
        columns: Width of the terminal in columns.

    Returns:
        Text of at most `MAX_COLUMNS` columns and `MAX_ROWS` lines, in the shape of the image.

    Raises:
        InputError: The image is damaged, or has more than `MAX_PIXELS` pixels.
    """
    from PIL import Image

    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path) as image:  # Pillow warns of large images
            if image.width * image.height > MAX_PIXELS:
                limit = f"{MAX_PIXELS / 1e6:.0f} million pixels"
                raise InputError(
                    f"{path} has {image.width} x {image.height} pixels, and --preview shows at most {limit}",
                    "leave out --preview, or make the image smaller",
                )
            scale = min(min(columns, MAX_COLUMNS) / image.width, 2 * MAX_ROWS / image.height, 1)
            width, height = max(1, round(scale * image.width)), max(2, 2 * round(scale * image.height / 2))
            small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{path} cannot be shown: {error}", "copy it again") from error
    data, text = small.tobytes(), Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*data[k : k + 3]) for k in (3 * (y * width + x), 3 * ((y + 1) * width + x)))
            text.append(HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text

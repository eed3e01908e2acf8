"""Images in the terminal: each character shows two pixels."""

from pathlib import Path

from rich.color import Color
from rich.style import Style
from rich.text import Text

HALF = "▀"  # the upper half has the text colour, the lower half the background colour
MAX_COLUMNS = 64


def preview(path: Path, columns: int) -> Text:
    """Return an image as lines of half blocks.

    Args:
        path: Image file.
        columns: Width of the terminal in columns.

    Returns:
        Text of at most `MAX_COLUMNS` columns, in the shape of the image.
    """
    from PIL import Image

    with Image.open(path) as image:
        width = min(columns, MAX_COLUMNS, image.width)
        height = max(2, 2 * round(width * image.height / image.width / 2))
        small = image.convert("RGB").resize((width, height), Image.Resampling.BOX)
    data, text = small.tobytes(), Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = (Color.from_rgb(*data[k : k + 3]) for k in (3 * (y * width + x), 3 * ((y + 1) * width + x)))
            text.append(HALF, Style(color=upper, bgcolor=lower))
        text.append("\n")
    return text

"""Size and texts of a PNG, read without decoding its pixels."""

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

if TYPE_CHECKING:
    from PIL import Image

RECIPE_KEY = "rapm"  # key of the recipe among the texts
MAGIC = b"\x89PNG\r\n\x1a\n"
TEXTS = (b"tEXt", b"zTXt", b"iTXt")
PIXELS, END = b"IDAT", b"IEND"
HEADER_BYTES = len(MAGIC) + 25  # with the first chunk, which holds the size
NO_PIXELS = struct.pack(">I4sI", 0, PIXELS, 0x35AF061E)
REMEDY = "give a PNG"


@dataclass(frozen=True)
class Png:
    """A PNG's size and texts.

    Args:
        width: Width in pixels.
        height: Height in pixels.
        texts: Texts by keyword.
    """

    width: int
    height: int
    texts: dict[str, str]


def read_png(path: Path) -> Png:
    """Read the size and the texts of a PNG, and check its checksums.

    Raises:
        InputError: The file is no PNG or is damaged, or a text or the image would need too much memory.
    """
    from PIL import Image

    regular_file(path, REMEDY)
    try:
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=["PNG"]) as image:
            texts = _texts(image)
            image.verify()
            return Png(image.width, image.height, texts | _texts_after_pixels(path))
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is refused: {error}", REMEDY) from error
    except (OSError, SyntaxError, ValueError, LookupError, struct.error) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path} is no whole PNG: {reason}", "copy it again") from error


def _texts(image: "Image.Image") -> dict[str, str]:
    return {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}


def _texts_after_pixels(path: Path) -> dict[str, str]:
    """Return the texts that stand after the pixels, where Pillow reads them only after it has decoded the pixels.

    They are read from a PNG that consists of the header and them.
    """
    from PIL import Image

    start, *late = _header_and_late_texts(path)
    if not late:
        return {}
    with Image.open(io.BytesIO(b"".join((start, *late, NO_PIXELS))), formats=["PNG"]) as image:
        return _texts(image)


def _header_and_late_texts(path: Path) -> Iterator[bytes]:
    """Yield the start of a verified PNG up to its size, and each chunk of text that stands after the pixels."""
    has_pixels = False
    with path.open("rb") as file:
        yield file.read(HEADER_BYTES)
        while True:
            head = file.read(8)
            length, kind = struct.unpack(">I4s", head)
            if kind == END:
                return
            has_pixels |= kind == PIXELS
            if has_pixels and kind in TEXTS:
                yield head + file.read(length + 4)
            else:
                file.seek(length + 4, io.SEEK_CUR)

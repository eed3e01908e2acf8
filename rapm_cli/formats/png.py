"""Size and texts of a PNG, read without decoding its pixels."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

RECIPE_KEY = "rapm"  # key of the recipe among the texts
MAGIC = b"\x89PNG\r\n\x1a\n"
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
            texts = {str(name): str(text) for name, text in image.info.items() if isinstance(text, str)}
            image.verify()
            return Png(image.width, image.height, texts)
    except Image.DecompressionBombError as error:
        raise InputError(f"{path} is refused: {error}", REMEDY) from error
    except (OSError, SyntaxError, ValueError, LookupError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise InputError(f"{path} is no whole PNG: {reason}", "copy it again") from error

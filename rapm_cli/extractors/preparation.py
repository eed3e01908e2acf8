"""How a picture becomes what a network looks at: every crop, resize and rounding that moves a metric, by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

Picture = NDArray[np.uint8]  # (H, W, 3)
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Preparation:
    """What is done to a picture before any network's own resize, the same for real and generated ones.

    Args:
        side_px: Of the square that it is cropped to, about its middle, and resized to; None leaves it as it is.
        filter: Of Pillow's resize, with antialias, rounded to bytes.
        has_even_margins: Round half a pixel of a margin to the even side, as torchvision's crop does; else down.
    """

    side_px: int | None = None
    filter: str = "bicubic"
    has_even_margins: bool = False

    @property
    def spec(self) -> str:
        """In words that are equal where the pictures are."""
        margins = ", margins to even" if self.has_even_margins else ""
        return f"centre crop{margins}, Pillow {self.filter} to {self.side_px}" if self.side_px else "as they are"

    def __call__(self, picture: Picture) -> Picture:
        """(H, W, 3) to the square; to itself where nothing is to be done."""
        if self.side_px is None:
            return picture
        height, width = picture.shape[:2]
        side = min(height, width)
        halves = ((height - side) / 2, (width - side) / 2)
        top, left = (round(half) if self.has_even_margins else int(half) for half in halves)
        square = picture[top : top + side, left : left + side]
        if side == self.side_px:
            return square
        return np.asarray(_image(square).resize((self.side_px, self.side_px), _filter(self.filter)))


AS_IT_IS = Preparation()


def read_picture(path: Path) -> Picture:
    """The picture in a file, in RGB.

    Raises:
        InputError: It is none, or has more pixels than Pillow holds for safe.
    """
    from PIL import Image

    remedy = "take it out of the folder, or replace it"
    try:
        with Image.open(regular_file(path, remedy)) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is no picture that can be read: {str(error)[:200]}", remedy) from error


def pictures_in(folder: Path) -> list[Path]:
    """All files of pictures in a folder and below it, by name; links and what only looks like one are left out.

    Raises:
        InputError: There are none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", "give a folder of pictures")
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in PICTURES and path.is_file() and not path.is_symlink()
    )
    if not found:
        raise InputError(f"{folder} has no pictures", f"give a folder with {', '.join(PICTURES[:4])}")
    return found


def resized_without_rounding(side_px: int) -> Callable[[Picture], NDArray[np.float32]]:
    """Pillow's bicubic with antialias, each channel in float32, cut to [0, 255] and not rounded: (3, side, side).

    Source: "clean" resizing, arXiv:2104.11222, section 4.
    """

    def resize(picture: Picture) -> NDArray[np.float32]:
        from PIL import Image

        channels = [Image.fromarray(picture[:, :, k].astype(np.float32)) for k in range(3)]
        size = (side_px, side_px)
        return np.stack([np.asarray(each.resize(size, _filter("bicubic"))) for each in channels]).clip(0, 255)

    return resize


def cropped_and_scaled(
    side_px: int, mean: list[float], deviation: list[float], *, resized_to: int | None = None
) -> Callable[[Picture], NDArray[np.float32]]:
    """As CLIP's and DINO's own processors do: the short side resized, the middle cut out, in units of deviation.

    Args:
        side_px: Of what is cut out.
        mean: Of each channel, in [0, 1].
        deviation: Of the same.
        resized_to: Length of the short side; the same as `side_px` by default.
    """
    short = resized_to or side_px
    centre, scale = (np.asarray(values, np.float32)[:, None, None] for values in (mean, deviation))

    def prepare(picture: Picture) -> NDArray[np.float32]:
        height, width = picture.shape[:2]
        size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        resized = np.asarray(_image(picture).resize(size, _filter("bicubic")))
        top, left = (size[1] - side_px) // 2, (size[0] - side_px) // 2
        cut = resized[top : top + side_px, left : left + side_px].transpose(2, 0, 1)
        return np.asarray((cut.astype(np.float32) / 255 - centre) / scale, np.float32)

    return prepare


def _image(picture: Picture) -> Any:
    from PIL import Image

    return Image.fromarray(picture)


def _filter(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]

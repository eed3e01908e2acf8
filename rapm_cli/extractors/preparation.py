"""Preparation of images for networks: every crop, resize and rounding that changes a metric."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

ImageArray = NDArray[np.uint8]  # (H, W, 3), RGB
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Preparation:
    """Preparation of an image before any network's own resize, the same for reference images and samples.

    Args:
        side_px: Side in pixels of the centre crop after resizing; None keeps the image.
        filter: Filter of Pillow's resize, which has antialias and rounds to bytes.
        has_even_margins: Whether half a pixel of a margin is rounded to even, as in torchvision; otherwise down.
    """

    side_px: int | None = None
    filter: str = "bicubic"
    has_even_margins: bool = False

    @property
    def spec(self) -> str:
        """Description; two preparations with the same description give the same images."""
        margins = ", margins to even" if self.has_even_margins else ""
        return f"centre crop{margins}, Pillow {self.filter} to {self.side_px}" if self.side_px else "as they are"

    def __call__(self, image: ImageArray) -> ImageArray:
        """Return the (S, S, 3) square of an (H, W, 3) image; the image itself without a side."""
        if self.side_px is None:
            return image
        height, width = image.shape[:2]
        side = min(height, width)
        halves = ((height - side) / 2, (width - side) / 2)
        top, left = (round(half) if self.has_even_margins else int(half) for half in halves)
        square = image[top : top + side, left : left + side]
        if side == self.side_px:
            return square
        return np.asarray(_pillow(square).resize((self.side_px, self.side_px), _filter(self.filter)))


AS_IT_IS = Preparation()


def read_image(path: Path) -> ImageArray:
    """Return the image in a file, in RGB; of several frames the first, without transparency, and as it is stored.

    16 bits become 8 by scale. Transparency and EXIF rotation are ignored, as in other programs that measure FID.

    Raises:
        InputError: The file is no image, its values have no known range, or it has more pixels than Pillow considers
            safe.
    """
    from PIL import Image

    remedy = "take it out of the folder, or replace it"
    try:
        with Image.open(regular_file(path, remedy)) as image:
            return _rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is no readable image: {str(error)[:200]}", remedy) from error


def _rgb(image: Any) -> ImageArray:
    if image.mode.startswith("I;16"):
        grey = np.rint(np.asarray(image) / 257).astype(np.uint8)  # 65,535 becomes 255
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        kind = "whole numbers of 32 bits" if image.mode == "I" else "floating-point numbers"
        raise ValueError(f"its values are {kind}, whose range is unknown; convert it to 8 or 16 bits")
    has_alpha = "transparency" in image.info  # Pillow warns if a palette with transparency becomes RGB in one step
    return np.asarray((image.convert("RGBA") if has_alpha else image).convert("RGB"))


@dataclass(frozen=True)
class ImageFolder:
    """Files of a folder and below it; links are followed, and a file that several names lead to counts once.

    Args:
        paths: Image files, sorted.
        left_out: Number of other files, links to nothing, and further names of the same image.
    """

    paths: tuple[Path, ...]
    left_out: int


def image_files(folder: Path) -> ImageFolder:
    """Find the image files in a folder and below it.

    Raises:
        InputError: There is no folder, or no image in it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder", "give a folder of images")
    names = sorted(_files_below(folder, set()), key=lambda path: (path.is_symlink(), path))
    images = {path.resolve(): path for path in reversed(names) if path.suffix.lower() in SUFFIXES and path.is_file()}
    if not images:
        raise InputError(f"{folder} has no images", f"give a folder with {', '.join(SUFFIXES[:4])}")
    return ImageFolder(tuple(sorted(images.values())), len(names) - len(images))


def _files_below(folder: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield every name that is no folder, through links to folders, but each folder once."""
    seen.add(folder.resolve())
    with os.scandir(folder) as entries:
        inner = sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
    for entry in inner:
        path = Path(entry.path)
        if not entry.is_dir():
            yield path
        elif path.resolve() not in seen:
            yield from _files_below(path, seen)


def resized_without_rounding(side_px: int) -> Callable[[ImageArray], NDArray[np.float32]]:
    """Return a resize by Pillow's bicubic with antialias, each channel in float32, clipped and not rounded.

    Args:
        side_px: Side in pixels of the result.

    Returns:
        Function from (H, W, 3) uint8 to (3, side, side) float32 in [0, 255].

    Source: "clean" resizing, arXiv:2104.11222, section 4.
    """

    def resize(image: ImageArray) -> NDArray[np.float32]:
        from PIL import Image

        channels = [Image.fromarray(image[:, :, k].astype(np.float32)) for k in range(3)]
        size = (side_px, side_px)
        return np.stack([np.asarray(each.resize(size, _filter("bicubic"))) for each in channels]).clip(0, 255)

    return resize


def cropped_and_scaled(
    side_px: int, mean: list[float], deviation: list[float], *, resized_to: int | None = None
) -> Callable[[ImageArray], NDArray[np.float32]]:
    """Return the preparation of CLIP and DINO: resize the short side, crop the centre, normalise the channels.

    Args:
        side_px: Side in pixels of the crop.
        mean: Mean of each channel, in [0, 1].
        deviation: Standard deviation of each channel, in [0, 1].
        resized_to: Length in pixels of the short side before the crop; None for `side_px`.

    Returns:
        Function from (H, W, 3) uint8 to (3, side, side) float32.
    """
    short = resized_to or side_px
    centre, scale = (np.asarray(values, np.float32)[:, None, None] for values in (mean, deviation))

    def prepare(image: ImageArray) -> NDArray[np.float32]:
        height, width = image.shape[:2]
        size = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        resized = np.asarray(_pillow(image).resize(size, _filter("bicubic")))
        top, left = (size[1] - side_px) // 2, (size[0] - side_px) // 2
        cut = resized[top : top + side_px, left : left + side_px].transpose(2, 0, 1)
        return np.asarray((cut.astype(np.float32) / 255 - centre) / scale, np.float32)

    return prepare


def _pillow(image: ImageArray) -> Any:
    from PIL import Image

    return Image.fromarray(image)


def _filter(name: str) -> Any:
    from PIL import Image

    return Image.Resampling[name.upper()]

"""Known damages of images, in growing amounts: what metrics are checked with."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.extractors.preparation import ImageArray
from rapm_cli.metrics.metric import BLUR, CAST, COLLAPSE, COMPRESSION, NOISE, OTHER_PROMPT, ImageReader

Change = Callable[[ImageArray, float, int], ImageArray]  # image, amount and number of the image to the damaged image
CAST_COLOUR = (1.0, 0.0, -1.0)  # direction of the colour cast in RGB: warmer
REACH = 4.0  # half the width of the blur, in standard deviations


@dataclass(frozen=True)
class Damage:
    """A damage.

    Args:
        name: Name, as metrics claim to see it.
        amounts: Amounts, growing.
        unit: Unit of the amounts, for tables.
        change: Function that damages one image; None if the damage swaps whole images.
    """

    name: str
    amounts: tuple[float, ...]
    unit: str
    change: Change | None = None

    def title(self, amount: float) -> str:
        """Return the damage and its amount in words."""
        return f"{self.name} {amount:g}{self.unit}"


def blur(image: ImageArray, sigma: float, _: int) -> ImageArray:
    """Return an image blurred by a Gaussian of `sigma` pixels; its border goes on outside."""
    reach = max(1, round(REACH * sigma))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-0.5 * (offsets / sigma) ** 2)
    found = image.astype(np.float64)
    for axis in (0, 1):
        margins = [(reach, reach) if k == axis else (0, 0) for k in range(3)]
        windows = np.lib.stride_tricks.sliding_window_view(np.pad(found, margins, mode="edge"), len(kernel), axis)
        found = windows @ (kernel / kernel.sum())
    return _rounded(found)


def add_noise(image: ImageArray, sigma: float, number: int) -> ImageArray:
    """Return an image with Gaussian noise of `sigma` grey levels, other noise for each number."""
    noise = torch.randn(image.shape, generator=generator_for("damage", number)).numpy()
    return _rounded(image + sigma * noise)


def compress(image: ImageArray, loss: float, _: int) -> ImageArray:
    """Return an image after JPEG of quality 100 less `loss`."""
    from PIL import Image

    held = io.BytesIO()
    Image.fromarray(image).save(held, "JPEG", quality=round(100 - loss))
    with Image.open(held) as read:
        return np.asarray(read)


def cast(image: ImageArray, levels: float, _: int) -> ImageArray:
    """Return an image that is warmer by `levels` grey levels: redder and less blue."""
    return _rounded(image + levels * np.array(CAST_COLOUR))


def _rounded(values: NDArray[np.float64]) -> ImageArray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


DAMAGES = (
    Damage(BLUR, (0.3, 0.5, 1, 2), " px", blur),
    Damage(NOISE, (1, 2, 4, 8), " levels", add_noise),
    Damage(COMPRESSION, (5, 15, 30, 60), " below JPEG 100", compress),
    Damage(CAST, (2, 4, 8, 16), " levels", cast),
    Damage(OTHER_PROMPT, (10, 25, 50, 100), " % of images"),
    Damage(COLLAPSE, (25, 50, 75, 100), " % of prompts"),
)


def sources(count: int, percent: float) -> list[int]:
    """Return by number which image stands in its place: the next but one for `percent` of the images, spread evenly.

    Every second prompt teaches the judge of `told-apart`; an image must not come from the other half.
    """
    return [(k + 2 * _is_hit(k, percent)) % count for k in range(count)]


def collapsed(images: Sequence[ImageReader], others: Sequence[ImageReader], percent: float) -> list[ImageReader]:
    """Return the images with other noise of a model that ignores its noise for `percent` of the prompts."""
    return [images[k] if _is_hit(k, percent) else other for k, other in enumerate(others)]


def _is_hit(k: int, percent: float) -> bool:
    return int((k + 1) * percent / 100) > int(k * percent / 100)


def damaged(images: Sequence[ImageReader], damage: Damage, amount: float) -> list[ImageReader]:
    """Return functions that read images and damage them."""
    change = damage.change
    if change is None:
        return list(images)
    return [partial(_read, read, change, amount, k) for k, read in enumerate(images)]


def _read(read: ImageReader, change: Change, amount: float, number: int) -> ImageArray:
    return change(read(), amount, number)

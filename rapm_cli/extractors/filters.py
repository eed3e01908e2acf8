"""Filters: strengths of fixed random filters at several scales, which see fine detail, noise, colours and layout.

Nothing is downloaded or trained. The first filters work on the image at full size, so that no detail is lost.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import ImageArray

FILTERS, SIDE_PX = 32, 5  # filters at each scale, and their side
LAYOUT = 4  # mean colours of 4 x 4 parts of the image
SCALES = 4  # the image itself, and at half, a quarter and an eighth of its size
SMALLEST = 1e-4  # strength that counts as none; a grey level is 0.004
WIDTH = 3 * LAYOUT**2 + 3 + SCALES * 4 * FILTERS


@EXTRACTORS.add("filters")
def open_filters(opening: Opening) -> Extractor:
    """Open the filters; they compute on the CPU, so that the same images have the same features."""
    first, second = _random_filters(3, SIDE_PX), _random_filters(FILTERS, 3)
    return Extractor(
        identity=f"filters of rapm, {FILTERS} random ones of {SIDE_PX} px at {SCALES} scales, format 1",
        width=WIDTH,
        prepare=_as_floats,
        network=lambda images: filter_strengths(images, first, second),
        device=torch.device("cpu"),
    )


def filter_strengths(images: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Return (B, D) features of (B, 3, H, W) images in [0, 1].

    They are the mean colours of a coarse layout, the contrast of each channel and, at each scale, the logarithms of
    means of order 1, 2 and 4 of every filter's response, and of how the responses' strengths vary in the image.

    Args:
        images: RGB in [0, 1].
        first: (F, 3, S, S) filters of the image.
        second: (F, F, 3, 3) filters of the first responses' strengths.
    """
    layout = functional.adaptive_avg_pool2d(images, LAYOUT).flatten(1)
    found = [layout, images.std(dim=(2, 3))]
    for _ in range(SCALES):
        strength = _responses(images, first, 1).abs()
        varied = _responses(strength, second, 2).abs()
        square = strength.square()
        means = (strength.mean((2, 3)), square.mean((2, 3)).sqrt(), square.square().mean((2, 3)) ** 0.25)
        found += [(each + SMALLEST).log() for each in (*means, varied.mean((2, 3)))]
        images = functional.avg_pool2d(images, 2, ceil_mode=True)
    return torch.cat(found, dim=1)


def _responses(images: Tensor, filters: Tensor, stride: int) -> Tensor:
    """Return the responses of filters; the border's pixels go on outside, so that a flat image has none."""
    margin = filters.shape[-1] // 2
    padded = functional.pad(images, (margin,) * 4, mode="replicate")
    found: Tensor = functional.conv2d(padded, filters, stride=stride)
    return found


def _random_filters(channels: int, side: int) -> Tensor:
    """Return (F, channels, side, side) filters of length 1 that do not respond to a flat image."""
    shape = (FILTERS, channels, side, side)
    filters = torch.randn(shape, generator=generator_for("filters", channels, side))
    filters = filters - filters.mean(dim=(2, 3), keepdim=True)
    length: Tensor = filters.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    return filters / length


def _as_floats(image: ImageArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)

"""Filters: strengths of cosine filters at several scales, which see fine detail, noise, colours and layout.

Nothing is downloaded or trained. The first filters work on the image at full size, so that no detail is lost.
"""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from rapm_cli.extractors.extractor import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.preparation import ImageArray

# Grey and two differences of colours, each with the side in pixels of its filters
CHANNELS = (((0.299, 0.587, 0.114), 5), ((0.5, -0.5, 0.0), 3), ((0.25, 0.25, -0.5), 3))
FILTERS = sum(side**2 - 1 for _, side in CHANNELS)  # at each scale
LAYOUT = 4  # mean colours of 4 x 4 parts of the image
SCALES = 4  # the image itself, and at half, a quarter and an eighth of its size
SMALLEST, LITTLE = 1e-4, 2e-3  # strengths that count as none in a mean, and at one pixel; a grey level is 0.004
WIDTH = 3 * LAYOUT**2 + 3 + SCALES * 3 * FILTERS


@EXTRACTORS.add("filters")
def open_filters(opening: Opening) -> Extractor:
    """Open the filters; they compute on the CPU, so that the same images have the same features."""
    return Extractor(
        identity=f"filters of rapm, {FILTERS} cosines at {SCALES} scales, format 1",
        width=WIDTH,
        prepare=_as_floats,
        network=filter_strengths,
        device=torch.device("cpu"),
    )


def filter_strengths(images: Tensor) -> Tensor:
    """Return (B, D) features of (B, 3, H, W) RGB images in [0, 1].

    They are the mean colours of a coarse layout, the contrast of each channel and, at each scale, of every filter the
    logarithms of mean and root mean square of its strength, and the mean of its strength's logarithm.
    """
    found = [functional.adaptive_avg_pool2d(images, LAYOUT).flatten(1), images.std(dim=(2, 3))]
    for _ in range(SCALES):
        strength = torch.cat([_responses(images, colours, side) for colours, side in CHANNELS], dim=1).abs()
        means = (strength.mean((2, 3)), strength.square().mean((2, 3)).sqrt())
        found += [(each + SMALLEST).log() for each in means]
        found.append((strength + LITTLE).log().mean((2, 3)))
        images = functional.avg_pool2d(images, 2, ceil_mode=True)
    return torch.cat(found, dim=1)


def cosine_filters(side: int) -> Tensor:
    """Return (S^2 - 1, 1, S, S) filters: the two-dimensional cosine transform's basis without its constant.

    They are of length 1 and at right angles to each other. None responds to a flat image.

    Source: the DCT-II, Ahmed, Natarajan and Rao, IEEE Transactions on Computers C-23 (1974) 90.
    """
    k, x = torch.arange(side)[:, None], torch.arange(side)[None]
    waves = torch.cos(math.pi * (x + 0.5) * k / side)
    waves = waves / waves.square().sum(dim=1, keepdim=True).sqrt()
    return torch.einsum("ax,by->abxy", waves, waves).flatten(0, 1)[1:, None]


def _responses(images: Tensor, colours: tuple[float, ...], side: int) -> Tensor:
    """Return the filters' responses to a mix of colours; the border's pixels go on outside."""
    mixed = torch.einsum("bchw,c->bhw", images, images.new_tensor(colours))[:, None]
    padded = functional.pad(mixed, (side // 2,) * 4, mode="replicate")
    return functional.conv2d(padded, cosine_filters(side))


def _as_floats(image: ImageArray) -> NDArray[np.float32]:
    return np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / np.float32(255)

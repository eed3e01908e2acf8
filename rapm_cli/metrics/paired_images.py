"""Images of a model and of its teacher for the same prompts: read in batches; values as a share of the teacher's."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.metric import Estimate, ImageReader

BATCH = 16  # images that are held as floating-point numbers


def read_images(readers: Sequence[ImageReader]) -> Iterator[Tensor]:
    """Yield (B, 3, H, W) float32 RGB images in [0, 1], in order."""
    for start in range(0, len(readers), BATCH):
        images = torch.from_numpy(np.stack([read() for read in readers[start : start + BATCH]]))
        yield images.permute(0, 3, 1, 2).float() / 255


def shrink(images: Tensor) -> Tensor:
    """Return (B, C, H, W) images at half the size; each pixel is the mean of four."""
    return torch.nn.functional.avg_pool2d(images, 2)


def share_of_teacher(own: Tensor, teacher: Tensor, name: str) -> Estimate:
    """Return the mean of a model's values as a share of the mean of its teacher's.

    The interval resamples the prompts of both together.

    Args:
        own: (K,) values of the model by prompt.
        teacher: (K,) values of the teacher for the same prompts.
        name: Name of the metric, which seeds the resamples.
    """
    own, teacher = own.double(), teacher.double()

    def share(rows: Tensor) -> float:
        return float(own[rows].sum() / teacher[rows].sum().clamp(min=1e-12))

    exact, by_prompt = share(torch.arange(len(own))), own / teacher.mean().clamp(min=1e-12)
    if len(own) < 2:
        return Estimate(exact, by_prompt=by_prompt)
    low, high = bootstrap_interval(share, len(own), generator_for("bootstrap", name), draws=1000)
    return Estimate(exact, max(0.0, low), high, by_prompt=by_prompt)

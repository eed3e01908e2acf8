"""Diversity: how far a model's images of one prompt with two noises lie apart, as a share of the teacher's."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rapm_cli.metrics.metric import COLLAPSE, METRICS, Estimate, Evidence, ImageReader, Metric
from rapm_cli.metrics.paired_images import read_images, share_of_teacher, shrink

SMALLEST_PX = 8  # shortest side of the coarsest scale


def distance_at_scales(a: Tensor, b: Tensor) -> Tensor:
    """Return (B,) distances of (B, 3, H, W) images in [0, 1], in grey levels of 255.

    It is the root mean square difference, averaged over scales: the images themselves, at half the size, and so on to
    8 pixels. At full size alone, a grain of noise would count as much as another layout.
    """
    off, found = 255 * (a - b), []
    while True:
        found.append(off.square().mean(dim=(1, 2, 3)).sqrt())
        if min(off.shape[2:]) < 2 * SMALLEST_PX:
            return torch.stack(found).mean(dim=0)
        off = shrink(off)


def _spread(one: Sequence[ImageReader], other: Sequence[ImageReader]) -> Tensor:
    pairs = zip(read_images(one), read_images(other), strict=True)
    return torch.cat([distance_at_scales(a, b) for a, b in pairs])


def _diversity(evidence: Evidence) -> Estimate:
    count = len(evidence.teacher_others)
    own = _spread(evidence.images[:count], evidence.others[:count])
    return share_of_teacher(own, _spread(evidence.teacher_images[:count], evidence.teacher_others), "diversity")


METRICS.add("diversity")(
    Metric(
        "diversity", True, _diversity, target=1.0, wants_images=True, wants_teacher=True, wants_others=True,
        is_usual=True, form=".1f", unit="%", sees=(COLLAPSE,),
        blind_to="whether the images are good: noise and wrong objects raise it",
    )
)  # fmt: skip

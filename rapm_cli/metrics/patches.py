"""Patch distance: the sliced Wasserstein distance of patches at several scales, from the teacher's images."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.metrics.metric import (
    BLUR,
    CAST,
    COMPRESSION,
    METRICS,
    NOISE,
    Estimate,
    Evidence,
    ImageReader,
    Metric,
    mean_estimate,
)
from rapm_cli.metrics.paired_images import read_images, shrink

SIDE_PX = 7  # side of a patch
SMALLEST_PX = 16  # shortest side of the coarsest scale
DIRECTIONS = 64  # random directions that patches are projected on
PATCHES = 8192  # patches of a set at each scale, as far as 4 to 64 of an image allow
SCALE = 1000.0


def sliced_wasserstein(a: Tensor, b: Tensor, directions: Tensor) -> Tensor:
    """Return by prompt the mean Wasserstein-1 distance of projections of two sets; their mean is the distance.

    In one dimension the distance is the mean of f over one set less that over the other, where f is the function of
    slope 1 or -1 for which that is largest. So every prompt has its part, and the parts give an interval.

    Args:
        a: (K, P, D) vectors: P for each of K prompts.
        b: (K, P, D) vectors of the other set, for the same prompts.
        directions: (D, S) directions of length 1.

    Returns:
        (K,) parts, float64.

    Source: Karras et al., arXiv:1710.10196, section 5; Kantorovich and Rubinstein's duality, Villani, Optimal
    Transport, 2009, eq. 5.11.
    """
    count = a.shape[0] * a.shape[1]
    x = torch.cat([a.flatten(0, 1) @ directions, b.flatten(0, 1) @ directions]).double().T  # (S, 2 K P)
    points, order = x.sort(dim=1)
    mass = torch.where(order < count, 1.0, -1.0).cumsum(dim=1)[:, :-1]
    steps = torch.nn.functional.pad(-mass.sign() * points.diff(dim=1), (1, 0)).cumsum(dim=1)
    f = torch.empty_like(x).scatter_(1, order, steps).mean(dim=0)  # (2 K P,)
    return f[:count].view(a.shape[:2]).mean(dim=1) - f[count:].view(b.shape[:2]).mean(dim=1)


def pyramid(images: Tensor) -> list[Tensor]:
    """Return the Laplacian pyramid: what halving loses at each scale, and last the smallest image itself.

    Source: Burt and Adelson, IEEE Transactions on Communications 31 (1983) 532.
    """
    levels = []
    while min(images.shape[2:]) >= 2 * SMALLEST_PX:
        half = shrink(images)
        resize = torch.nn.functional.interpolate
        levels.append(images - resize(half, size=images.shape[2:], mode="bilinear", align_corners=False))
        images = half
    return [*levels, images]


def _patches(readers: Sequence[ImageReader]) -> list[Tensor]:
    """Return (K, P, D) patches at each scale; their places depend on the prompt's number alone."""
    per_image = min(64, max(4, PATCHES // len(readers)))
    found: list[list[Tensor]] = []
    k = 0
    for images in read_images(readers):
        for image in images:
            levels = pyramid(image[None])
            found = found or [[] for _ in levels]
            generator = generator_for("patches", k)
            for kept, level in zip(found, levels, strict=True):
                kept.append(_some_patches(level[0], per_image, generator))
            k += 1
    return [torch.stack(kept) for kept in found]


def _some_patches(image: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Return (count, 3 * 49) patches of a (3, H, W) image at random places."""
    side = min(SIDE_PX, *image.shape[1:])
    windows = image.unfold(1, side, 1).unfold(2, side, 1)  # (3, rows, columns, side, side)
    rows, columns = (torch.randint(windows.shape[k], (count,), generator=generator) for k in (1, 2))
    return windows[:, rows, columns].transpose(0, 1).flatten(1)


def patch_distance(images: Sequence[ImageReader], teacher: Sequence[ImageReader]) -> Tensor:
    """Return (K,) parts of the distance of two sets of K images, in thousandths of the teacher's standard deviation.

    # Differs: Karras et al. scale each set by its own deviation, which hides a loss of contrast. Here the teacher's
    deviation scales both, and no mean is taken off, so that a colour cast counts.
    """
    parts = []
    for ours, theirs in zip(_patches(images), _patches(teacher), strict=True):
        generator = generator_for("patch directions", ours.shape[2])
        directions = torch.nn.functional.normalize(torch.randn(ours.shape[2], DIRECTIONS, generator=generator), dim=0)
        scale = theirs.std().clamp(min=1e-6)
        parts.append(sliced_wasserstein(ours / scale, theirs / scale, directions))
    return SCALE * torch.stack(parts).mean(dim=0)


def _compute(evidence: Evidence) -> Estimate:
    count = len(evidence.teacher_images)
    return mean_estimate(patch_distance(evidence.images[:count], evidence.teacher_images))


METRICS.add("patches")(
    Metric(
        "patch distance", False, _compute, wants_images=True, wants_teacher=True, is_usual=True, form=".1f",
        sees=(BLUR, NOISE, COMPRESSION, CAST),
        blind_to="what the images show, and whether it suits the prompt: a wrong object has right patches",
    )
)  # fmt: skip

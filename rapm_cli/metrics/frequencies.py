"""Sharpness: edge contrast, and the amplitude in bands of spatial frequency, as shares of the teacher's."""

from collections.abc import Callable

import torch
from torch import Tensor

from rapm_cli.metrics.metric import BLUR, METRICS, NOISE, Estimate, Evidence, Metric
from rapm_cli.metrics.paired_images import read_images, share_of_teacher

BANDS = {"coarse": (0.02, 0.08), "middle": (0.08, 0.16), "fine": (0.16, 0.32)}  # cycles per pixel
EDGE_SHARE = 0.99  # the edge contrast is this quantile of the differences between neighbours
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


def grey(images: Tensor) -> Tensor:
    """Return the (B, H, W) luma of (B, 3, H, W) RGB images, in the same units."""
    return torch.einsum("bchw,c->bhw", images, images.new_tensor(GREY))


def edge_contrast(images: Tensor) -> Tensor:
    """Return how strong the strongest edges are.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        (B,) 99th percentile of the absolute differences of neighbouring grey values, in [0, 1].
    """
    luma = grey(images)
    steps = torch.cat([luma.diff(dim=1).abs().flatten(1), luma.diff(dim=2).abs().flatten(1)], dim=1)
    return torch.quantile(steps, EDGE_SHARE, dim=1)


def band_amplitudes(images: Tensor) -> Tensor:
    """Return the amplitude of each of `BANDS`.

    Args:
        images: (B, 3, H, W) RGB in [0, 1].

    Returns:
        (B, 3) root mean square of the grey image's part in each band, in [0, 1]. A Hann window keeps the borders'
        jump out of the bands.
    """
    luma = grey(images)
    height, width = luma.shape[1:]
    window = torch.outer(torch.hann_window(height), torch.hann_window(width)).to(luma)
    luma = (luma - luma.mean(dim=(1, 2), keepdim=True)) * window
    power = torch.fft.rfft2(luma).abs().square() * _times_stored(height, width).to(luma)
    across, down = torch.fft.rfftfreq(width), torch.fft.fftfreq(height)
    frequency = torch.hypot(down.unsqueeze(1), across.unsqueeze(0)).to(luma)
    pixels = height * width
    parts = [
        (power * ((frequency >= low) & (frequency < high))).sum(dim=(1, 2)) / pixels / window.square().sum()
        for low, high in BANDS.values()
    ]
    return torch.stack(parts, dim=1).sqrt()


def _times_stored(height: int, width: int) -> Tensor:
    """Return (H, W // 2 + 1) numbers of waves that each value of a real image's half spectrum stands for."""
    times = torch.full((height, width // 2 + 1), 2.0)
    times[:, 0] = 1.0
    if width % 2 == 0:
        times[:, -1] = 1.0
    return times


def _sharpness(evidence: Evidence, which: str) -> tuple[Tensor, Tensor]:
    """Return (K, 4) edge contrast and amplitudes of the model's images, and of the teacher's; computed once."""
    found = evidence.shared.get("sharpness")
    if not isinstance(found, tuple):
        count = len(evidence.teacher_images)
        sets = (evidence.images[:count], evidence.teacher_images)
        found = tuple(
            torch.cat([torch.cat([edge_contrast(x)[:, None], band_amplitudes(x)], 1) for x in read_images(readers)])
            for readers in sets
        )
        evidence.shared["sharpness"] = found
    column = ("edges", *BANDS).index(which)
    return found[0][:, column], found[1][:, column]


def _share(name: str) -> Callable[[Evidence], Estimate]:
    return lambda evidence: share_of_teacher(*_sharpness(evidence, name), name)


def _add(name: str, title: str, sees: tuple[str, ...], blind_to: str) -> None:
    METRICS.add(name)(
        Metric(
            title, True, _share(name), target=1.0, wants_images=True, wants_teacher=True, is_usual=True, form=".1f",
            unit="%", sees=sees, blind_to=blind_to,
        )
    )  # fmt: skip


_add("edges", "edge contrast", (BLUR,), "whether edges are in the right place; noise and ringing raise it")
_add("coarse", "coarse detail", (), "what it shows, and any damage finer than 12 pixels")
_add("middle", "middle detail", (BLUR,), "what it shows; wrong texture of the right strength counts as right")
_add("fine", "fine detail", (BLUR, NOISE), "what it shows; noise counts as detail, so blur with noise can hide")

"""Distances and adversarial losses; every one is a mean, so weights do not depend on sizes."""

import torch
from torch import Tensor
from torch.nn import functional

HUBER_C = 0.001  # PCM's


def pseudo_huber_mean(a: Tensor, b: Tensor, c: float = HUBER_C) -> Tensor:
    """mean(sqrt((a - b)^2 + c^2) - c): squared near zero, absolute elsewhere.

    Source: arXiv:2310.14189, eq. 7, taken elementwise as PCM does.
    """
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def hinge_student_mean(fake: list[Tensor]) -> Tensor:
    """Mean relu(1 - D), averaged over taps: no gradient once the discriminator is convinced."""
    return torch.stack([torch.relu(1 - logits).mean() for logits in fake]).mean()


def hinge_discriminator_mean(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Mean relu(1 - D(real)) + mean relu(1 + D(fake)), averaged over taps; 2 when it cannot tell."""
    parts = [torch.relu(1 - r).mean() + torch.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def softplus_mean(logits: Tensor) -> Tensor:
    """Mean log(1 + exp(D)): of D(fake) and -D(real) a discriminator's loss, of -D(fake) the student's."""
    return functional.softplus(logits).mean()

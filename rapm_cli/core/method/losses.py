"""Distances and adversarial losses; each is a mean, so that its weight does not depend on sizes."""

import torch
from torch import Tensor
from torch.nn import functional

HUBER_C = 0.001  # as PCM's


def pseudo_huber_mean(a: Tensor, b: Tensor, c: float = HUBER_C) -> Tensor:
    """Return mean(sqrt((a - b)^2 + c^2) - c), which is quadratic near zero and linear elsewhere.

    Source: arXiv:2310.14189, eq. 7, taken elementwise as PCM does.
    """
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def hinge_student_mean(fake: list[Tensor]) -> Tensor:
    """Return mean relu(1 - D), averaged over taps; it has no gradient where D is above 1."""
    return torch.stack([torch.relu(1 - logits).mean() for logits in fake]).mean()


def hinge_discriminator_mean(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return mean relu(1 - D(real)) + mean relu(1 + D(fake)), averaged over taps; 2 if D cannot tell them apart."""
    parts = [torch.relu(1 - r).mean() + torch.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def softplus_mean(logits: Tensor) -> Tensor:
    """Return mean log(1 + exp(D)), of D(fake) and -D(real) for a discriminator, of -D(fake) for the student."""
    return functional.softplus(logits).mean()

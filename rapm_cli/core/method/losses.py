"""Distances and adversarial losses; each is a mean, so that its weight does not depend on sizes."""

import torch
from torch import Tensor
from torch.nn import functional

HUBER_C = 0.001  # as PCM's


def pseudo_huber_mean(a: Tensor, b: Tensor, c: float = HUBER_C) -> Tensor:
    """Return mean(sqrt((a - b)^2 + c^2) - c), which is quadratic near zero and linear elsewhere.

    Args:
        a: Tensor of any shape.
        b: Tensor of the same shape.
        c: Half-width of the quadratic part, above 0.

    Returns:
        Scalar.

    Source: arXiv:2310.14189, eq. 7, taken elementwise as PCM does.
    """
    return (((a - b) ** 2 + c**2).sqrt() - c).mean()


def hinge_student_mean(fake: list[Tensor]) -> Tensor:
    """Return mean relu(1 - D), averaged over features; it has no gradient where D is above 1.

    Args:
        fake: Logits (B, 1, H_k, W_k) on each feature of the student's latents.

    Returns:
        Scalar.

    Source: PCM's published code.
    """
    return torch.stack([torch.relu(1 - logits).mean() for logits in fake]).mean()


def hinge_discriminator_mean(real: list[Tensor], fake: list[Tensor]) -> Tensor:
    """Return mean relu(1 - D(real)) + mean relu(1 + D(fake)), averaged over features; 2 if D cannot tell them apart.

    Args:
        real: Logits (B, 1, H_k, W_k) on each feature of the targets.
        fake: Logits of the same shapes, on the student's latents.

    Returns:
        Scalar.

    Source: PCM's published code.
    """
    parts = [torch.relu(1 - r).mean() + torch.relu(1 + f).mean() for r, f in zip(real, fake, strict=True)]
    return torch.stack(parts).mean()


def softplus_mean(logits: Tensor) -> Tensor:
    """Return mean log(1 + exp(D)), of D(fake) and -D(real) for a discriminator, of -D(fake) for the student.

    Args:
        logits: Tensor of any shape.

    Returns:
        Scalar.

    Source: DMD2's published code.
    """
    return functional.softplus(logits).mean()

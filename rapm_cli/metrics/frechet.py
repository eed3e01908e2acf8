"""The Fréchet distance between two Gaussians fitted to features, in float64: FID, FD-DINOv2 and FD-demo."""

from collections.abc import Callable

import torch
from torch import Tensor

from rapm_cli.metrics.metric import (
    DINO,
    INCEPTION,
    METRICS,
    Bootstrap,
    Estimate,
    Evidence,
    LabelledSamples,
    Metric,
    add_labelled_metric,
)
from rapm_cli.metrics.moments import Moments, moments

ROUNDING = 1e-5  # asymmetry of a covariance and negative eigenvalues that count as rounding, over the largest value


def frechet_distance(a: Moments, b: Moments) -> float:
    """Return |mu_a - mu_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), never negative.

    With S_a = R R^T, the trace of the root is the sum of the square roots of the eigenvalues of R^T S_b R. This
    matrix is symmetric, so neither complex arithmetic nor a matrix square root is needed.

    Args:
        a: Mean and covariance of D features.
        b: Mean and covariance of the same D features of other images.

    Raises:
        ValueError: A covariance is not symmetric, or has a negative eigenvalue beyond rounding.

    Source: arXiv:1706.08500, section 3.
    """
    for side in (a, b):
        skew = (side.covariance - side.covariance.T).abs().max()
        if skew > ROUNDING * side.covariance.abs().max():
            raise ValueError("a covariance that is not symmetric")
    values, vectors = torch.linalg.eigh(a.covariance)
    root = vectors * _without_negative(values).sqrt()
    cross = _without_negative(torch.linalg.eigvalsh(root.T @ b.covariance @ root)).sqrt().sum()
    distance = (a.mean - b.mean).square().sum() + a.covariance.trace() + b.covariance.trace() - 2 * cross
    return max(0.0, float(distance))


def _without_negative(values: Tensor) -> Tensor:
    if values.min() < -ROUNDING * values.max().clamp(min=1e-300):
        raise ValueError(f"a covariance with the negative eigenvalue {float(values.min()):.3g}")
    return values.clamp(min=0)


def _of_extractor(extractor: str) -> Callable[[Evidence], Estimate]:
    def compute(evidence: Evidence) -> Estimate:
        return Estimate(frechet_distance(evidence.moments[extractor], evidence.reference[extractor].moments))

    return compute


def _demo(samples: LabelledSamples) -> float:
    return frechet_distance(moments(samples.features), moments(samples.reference))


BLIND_TO = "whether an image suits its prompt, and a single bad image; it needs thousands of images"
add_labelled_metric(
    "fd-demo", "FD-demo", False, Bootstrap(_demo, lowest=0), is_usual=False, sees=(),
    blind_to="blur and noise, which its reader was trained to overlook, nor whether an image suits its prompt",
)  # fmt: skip
METRICS.add("fid")(
    Metric(
        "FID", False, _of_extractor(INCEPTION), INCEPTION, wants_moments=True, is_usual=True, fewest=2,
        blind_to=BLIND_TO,
    )
)  # fmt: skip
METRICS.add("fd-dinov2")(
    Metric("FD-DINOv2", False, _of_extractor(DINO), DINO, wants_moments=True, fewest=2, blind_to=BLIND_TO)
)

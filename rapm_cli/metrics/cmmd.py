"""CMMD: the maximum mean discrepancy of CLIP embeddings with a Gaussian kernel."""

import torch
from torch import Tensor

from rapm_cli.metrics.metric import CLIP_336, METRICS, Estimate, Evidence, Metric

SIGMA, SCALE = 10.0, 1000.0
ROWS = 2048  # rows of a kernel matrix that are held at a time


def clip_discrepancy(a: Tensor, b: Tensor) -> float:
    """Return the biased estimate of the squared discrepancy, times 1,000; never negative.

    Args:
        a: (N, D) embeddings; every row is normalised to length 1 first.
        b: (M, D) embeddings; likewise.

    Source: arXiv:2401.09603, section 4, eq. 4 with every term's diagonal, sigma = 10.
    """
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (a, b))
    return SCALE * max(0.0, _mean_kernel(x, x) + _mean_kernel(y, y) - 2 * _mean_kernel(x, y))


def _mean_kernel(x: Tensor, y: Tensor) -> float:
    """Return the mean kernel over all pairs of rows of length 1, for which |x - y|^2 = 2 - 2 x.y."""
    sums = [((x[k : k + ROWS] @ y.T - 1) / SIGMA**2).exp().sum() for k in range(0, len(x), ROWS)]
    return float(torch.stack(sums).sum()) / (len(x) * len(y))


def _cmmd(evidence: Evidence) -> Estimate:
    reference = evidence.reference[CLIP_336].features
    assert reference is not None
    return Estimate(clip_discrepancy(evidence.features[CLIP_336], reference))


METRICS.add("cmmd")(
    Metric(
        "CMMD", False, _cmmd, CLIP_336, wants_features=True, form=".3f", fewest=2,
        blind_to="whether an image suits its prompt, and fine detail that CLIP overlooks",
    )
)  # fmt: skip

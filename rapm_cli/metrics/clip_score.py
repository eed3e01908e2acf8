"""CLIP score: 100 times the cosine between the embeddings of an image and of its prompt."""

import torch
from torch import Tensor

from rapm_cli.metrics.metric import CLIP, METRICS, OTHER_PROMPT, Estimate, Evidence, Metric, mean_estimate


def clip_scores(features: Tensor, texts: Tensor) -> Tensor:
    """Return the CLIP score of each image, in [-100, 100]; negative scores are kept.

    Args:
        features: (N, D) embeddings of the images.
        texts: (N, D) embeddings of their prompts.

    Returns:
        (N,) float64 scores.

    Source: arXiv:2104.08718, section 3, with w = 100 and without the cut at zero.
    """
    return 100 * torch.nn.functional.cosine_similarity(features.double(), texts.double(), dim=1)


def _clip(evidence: Evidence) -> Estimate:
    assert evidence.texts is not None
    return mean_estimate(clip_scores(evidence.features[CLIP], evidence.texts))


METRICS.add("clip")(
    Metric(
        "CLIP score", True, _clip, CLIP, wants_texts=True, is_usual=True, sees=(OTHER_PROMPT,),
        blind_to="most blur, noise and artefacts",
    )
)  # fmt: skip

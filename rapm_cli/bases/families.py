"""The two supported model families, SDXL and SD 1.5: their prompt encoding and their default settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases.base import Defaults
from rapm_cli.bases.support import LAYOUTS, Layout
from rapm_cli.core.method.sizes import Size
from rapm_cli.core.network.backbone import Conditioning

SDXL_DEFAULTS = Defaults(
    guidance_scale=7.5,
    fine_steps=10,
    trajectories=1000,
    rank=1,
    iterations=20_000,
    batch_size=1,
    learning_rate=5e-5,
    discriminator_learning_rate=1e-5,
    warmup=100,
    checkpoint_every=200,
    rollout_batch=4,
    image_batch=1,
)
SD15_DEFAULTS = replace(
    SDXL_DEFAULTS, rollout_batch=8, image_batch=4
)  # a quarter of the pixels, a third of the weights


@dataclass(frozen=True, kw_only=True)
class Family(Layout):
    """A model family.

    Args:
        left_out: Parts of the pipeline that are never loaded.
        settings: Arguments of the pipeline's constructor.
        defaults: Default settings of a distillation.
        encode: Function (pipeline, prompts, device) -> conditioning without time ids, in the encoders' dtype.
        unconditional: Function (pipeline, device) -> the empty prompt's conditioning, as used by guidance.
    """

    left_out: tuple[str, ...]
    settings: dict[str, Any]
    defaults: Defaults
    encode: Callable[[Any, list[str], torch.device], Conditioning]
    unconditional: Callable[[Any, torch.device], Conditioning]

    def time_ids(self, size: Size) -> Tensor | None:
        """Return the (1, 6) original size, crop and target size of images, heights first, or None."""
        width, height = map(float, size)
        return torch.tensor([[height, width, 0.0, 0.0, height, width]]) if self.has_time_ids else None


def _encode_sdxl(pipeline: Any, prompts: list[str], device: torch.device) -> Conditioning:
    tokens, _, pooled, _ = pipeline.encode_prompt(prompts, device=device, do_classifier_free_guidance=False)
    return Conditioning(tokens, pooled)


def _unconditional_sdxl(pipeline: Any, device: torch.device) -> Conditioning:
    _, tokens, _, pooled = pipeline.encode_prompt("", device=device, do_classifier_free_guidance=True)
    return Conditioning(tokens, pooled)


def _encode_sd(pipeline: Any, prompts: list[str], device: torch.device) -> Conditioning:
    tokens, _ = pipeline.encode_prompt(prompts, device, 1, False)
    return Conditioning(tokens)


FAMILIES = {
    "sdxl": Family(
        **vars(LAYOUTS["sdxl"]),
        left_out=("image_encoder", "feature_extractor"),
        settings={"add_watermarker": False},
        defaults=SDXL_DEFAULTS,
        encode=_encode_sdxl,
        unconditional=_unconditional_sdxl,
    ),
    "sd15": Family(
        **vars(LAYOUTS["sd15"]),
        left_out=("safety_checker", "feature_extractor", "image_encoder"),
        settings={"requires_safety_checker": False},
        defaults=SD15_DEFAULTS,
        encode=_encode_sd,
        unconditional=lambda pipeline, device: _encode_sd(pipeline, [""], device),
    ),
}

"""The two supported model families, SDXL and SD 1.5: their prompt encoding and their default settings."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases.base import Defaults
from rapm_cli.bases.weights import Weights, read_json
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.network.backbone import Conditioning

SD2_TEXT_WIDTH = 1024  # Stable Diffusion 2 uses the pipeline class of 1.5

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


@dataclass(frozen=True)
class Family:
    """A model family.

    Args:
        pipeline: Class of the pipeline in diffusers, as model_index.json names it.
        encoders: Text encoders by part name, each with its class in transformers.
        left_out: Parts of the pipeline that are never loaded.
        settings: Arguments of the pipeline's constructor.
        defaults: Default settings of a distillation.
        encode: Function (pipeline, prompts, device) -> conditioning without time ids, in the encoders' dtype.
        unconditional: Function (pipeline, device) -> the empty prompt's conditioning, as used by guidance.
        has_time_ids: Whether the UNet takes the image size as an input.
    """

    pipeline: str
    encoders: dict[str, str]
    left_out: tuple[str, ...]
    settings: dict[str, Any]
    defaults: Defaults
    encode: Callable[[Any, list[str], torch.device], Conditioning]
    unconditional: Callable[[Any, torch.device], Conditioning]
    has_time_ids: bool

    @property
    def parts(self) -> dict[str, list[str]]:
        """Library and class of each part that has weights, as model_index.json names them."""
        text = {name: ["transformers", kind] for name, kind in self.encoders.items()}
        return {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"], **text}

    def time_ids(self, side_px: int) -> Tensor | None:
        """Return the (1, 6) original size, crop and target size of square images, or None."""
        return torch.tensor([[side_px, side_px, 0.0, 0.0, side_px, side_px]]) if self.has_time_ids else None


def family_of(weights: Weights) -> Family:
    """Return the family of the model in a folder.

    Raises:
        InputError: The model belongs to no supported family.
    """
    path = weights.folder / "model_index.json"
    index = read_json(path)
    name = index.get("_class_name")
    family = next((family for family in FAMILIES.values() if family.pipeline == name), None)
    if family is None:
        known = " or ".join(family.pipeline for family in FAMILIES.values())
        raise InputError(f"{path} names a {name}, which rapm cannot distil", f"give a {known}")
    for part, kind in family.parts.items():
        if index.get(part) != kind:
            raise InputError(
                f"{path} names {index.get(part)} as its {part}", f"give a {name} whose {part} is {kind[1]}"
            )
    if not family.has_time_ids and weights.config("unet").get("cross_attention_dim") == SD2_TEXT_WIDTH:
        raise InputError(
            f"{weights.folder} is a Stable Diffusion 2, which rapm does not know",
            "give an SDXL or a Stable Diffusion 1.5",
        )
    return family


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
        pipeline="StableDiffusionXLPipeline",
        encoders={"text_encoder": "CLIPTextModel", "text_encoder_2": "CLIPTextModelWithProjection"},
        left_out=("image_encoder", "feature_extractor"),
        settings={"add_watermarker": False},
        defaults=SDXL_DEFAULTS,
        encode=_encode_sdxl,
        unconditional=_unconditional_sdxl,
        has_time_ids=True,
    ),
    "sd15": Family(
        pipeline="StableDiffusionPipeline",
        encoders={"text_encoder": "CLIPTextModel"},
        left_out=("safety_checker", "feature_extractor", "image_encoder"),
        settings={"requires_safety_checker": False},
        defaults=SD15_DEFAULTS,
        encode=_encode_sd,
        unconditional=lambda pipeline, device: _encode_sd(pipeline, [""], device),
        has_time_ids=False,
    ),
}

"""Shapes of base models without their weights, for memory predictions and timings."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from rapm_cli.bases.support import sample_sides
from rapm_cli.bases.weights import Weights
from rapm_cli.core.method.sizes import Size, largest
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import NoiseSchedule

SHAPES = {  # settings of a UNet that its tensors' shapes follow from, with diffusers' defaults
    "block_out_channels": None, "cross_attention_dim": None, "projection_class_embeddings_input_dim": None,
    "layers_per_block": 2, "transformer_layers_per_block": 1, "in_channels": 4, "out_channels": 4,
}  # fmt: skip


LatentShape = tuple[int, int, int]  # channels, height and width
USUAL_SIDES = (64, 64)  # of latents, where a UNet's configuration names none


def latent_shape(own: LatentShape, scale: int, size: Size | None) -> LatentShape:
    """Return the shape (C, h, w) of the latent of an image.

    Args:
        own: Shape of the base's own latents.
        scale: Number of pixels along one side of a value of a latent.
        size: Size of the image; None for the base's own.
    """
    return (own[0], size[1] // scale, size[0] // scale) if size else own


@dataclass(frozen=True)
class Architecture:
    """Shapes of a base's UNet and autoencoder.

    Args:
        unet: Configuration of the `UNet2DConditionModel`.
        vae: Configuration of the `AutoencoderKL`.
        tokens: Length of an encoded prompt in tokens.
        size: Size of the images; None for the base's own.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    tokens: int = 77
    size: Size | None = None

    @cached_property
    def latent_shape(self) -> LatentShape:
        """Shape (C, h, w) of one latent."""
        own = self.unet.get("in_channels", 4), *(sample_sides(self.unet) or USUAL_SIDES)
        return latent_shape(own, self.scale, self.size)

    @property
    def scale(self) -> int:
        """Number of pixels along one side of a value of a latent."""
        scale: int = 2 ** (len(self.vae["block_out_channels"]) - 1)
        return scale

    @property
    def size_step(self) -> int:
        """Number of pixels by which the autoencoder and the UNet's downsamplings divide width and height."""
        halvings = len(self.unet["block_out_channels"]) - 1
        return int(self.scale * 2**halvings)

    def at_largest(self, sizes: Sequence[str]) -> "Architecture":
        """Return the same shapes at the size with the most pixels, as options name sizes; none for the base's own."""
        return replace(self, size=largest(sizes))

    @property
    def has_pooled_text(self) -> bool:
        """Whether the UNet takes the pooled text and the image size as inputs, as SDXL's does."""
        return self.unet.get("addition_embed_type") == "text_time"

    @property
    def has_usual_shapes(self) -> bool:
        """Whether the UNet has the shapes of the published SDXL or SD 1.5, by which other programs know a model."""
        known = ARCHITECTURES["sdxl" if self.has_pooled_text else "sd15"].unet
        return all(self.unet.get(name, usual) == known.get(name, usual) for name, usual in SHAPES.items())

    @property
    def image_size(self) -> Size:
        """Width and height of the images in pixels."""
        return self.latent_shape[2] * self.scale, self.latent_shape[1] * self.scale

    def network(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Create the UNet with random weights."""
        from diffusers import UNet2DConditionModel

        return _made(lambda: UNet2DConditionModel.from_config(self.unet), device, dtype)

    def backbone(self, device: torch.device, dtype: torch.dtype) -> Backbone:
        """Create the UNet with random weights, with a noise schedule."""
        return Backbone(self.network(device, dtype), NoiseSchedule.scaled_linear())

    def autoencoder(self, device: torch.device, dtype: torch.dtype) -> nn.Module:
        """Create the autoencoder with random weights."""
        from diffusers import AutoencoderKL

        return _made(lambda: AutoencoderKL.from_config(self.vae), device, dtype)

    def conditioning(self, device: torch.device, dtype: torch.dtype) -> Conditioning:
        """Create one row of conditioning, all ones."""
        tokens = torch.ones(1, self.tokens, self.unet["cross_attention_dim"], device=device, dtype=dtype)
        if not self.has_pooled_text:
            return Conditioning(tokens)
        width = self.unet["projection_class_embeddings_input_dim"] - 6 * self.unet["addition_time_embed_dim"]
        pooled = torch.ones(1, width, device=device, dtype=dtype)
        return Conditioning(tokens, pooled, torch.ones(1, 6, device=device))


def architecture_of(weights: Weights) -> Architecture:
    """Read the shapes of a base from its configurations.

    Raises:
        InputError: A configuration is missing.
    """
    tokenizer = weights.config("tokenizer", "tokenizer_config.json")
    tokens = tokenizer.get("model_max_length", 77)
    return Architecture(weights.config("unet"), weights.config("vae"), min(tokens, 77) if tokens else 77)


def _made(make: Any, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Create a model directly on its device and in its dtype, so that no larger copy is in memory first."""
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            return make().eval()  # type: ignore[no-any-return]
    finally:
        torch.set_default_dtype(usual)


_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
ARCHITECTURES = {
    "sdxl": Architecture(
        unet={
            "sample_size": 128,
            "block_out_channels": [320, 640, 1280],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            "transformer_layers_per_block": [1, 2, 10],
            "attention_head_dim": [5, 10, 20],
            "cross_attention_dim": 2048,
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 256,
            "projection_class_embeddings_input_dim": 2816,
        },
        vae=_VAE | {"sample_size": 1024, "scaling_factor": 0.13025},
    ),
    "sd15": Architecture(
        unet={
            "sample_size": 64,
            "block_out_channels": [320, 640, 1280, 1280],
            "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
            "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
            "attention_head_dim": 8,
            "cross_attention_dim": 768,
        },
        vae=_VAE | {"sample_size": 512, "scaling_factor": 0.18215},
    ),
}

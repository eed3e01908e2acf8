"""A loaded base: the UNet stays on the device; text encoders and autoencoder are there only while they work."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rapm_cli.bases.architectures import LatentShape, latent_shape
from rapm_cli.bases.families import FAMILIES
from rapm_cli.bases.merged import merge_loras
from rapm_cli.bases.parts import load_text, load_unet, load_vae
from rapm_cli.bases.support import judge
from rapm_cli.bases.weights import Weights
from rapm_cli.core.method.sizes import Size
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import NoiseSchedule

END_OF_WORD = "</w>"  # suffix of a token that ends a word
PROMPTS_AT_ONCE = 32  # batch of the text encoders
ROOMY, NARROW = 20 * 2**30, 10 * 2**30  # bytes: a larger device keeps all parts, a smaller one decodes in tiles
TILE_PX = 512  # side of a tile; the autoencoder's default tiles are as large as its images


class LoadedBase:
    """A base model whose parts are read from their files at first use.

    Args:
        weights: Files of the base.
        device: Device that computes.
        dtype: Dtype of the UNet and the text encoders.

    Raises:
        InputError: The model is not supported.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._weights, self._dtype = device, weights, dtype
        judged = judge(weights)
        self._family = FAMILIES[judged.family]
        self._schedule = NoiseSchedule.scaled_linear(
            judged.beta_start,
            judged.beta_end,
            prediction_type=judged.prediction_type,
            has_zero_snr=judged.has_zero_snr,
        )
        for part in self._family.parts:
            weights.check(part)
        self.latent_shape = judged.latent_shape
        self.size = judged.size
        self._scaling = judged.scaling_factor

    def load(self) -> None:
        """Read every part now, so that a damaged file is reported before hours of work.

        Raises:
            InputError: The files are not those of such a model.
        """
        _ = self.backbone, self._text, self._vae

    @cached_property
    def backbone(self) -> Backbone:
        """The UNet with its noise schedule, always on the device."""
        unet = load_unet(self._weights, self._dtype)
        if self._weights.loras:
            merge_loras(unet, self._weights, self._dtype)
        return Backbone(unet.to(self.device), self._schedule)

    @cached_property
    def _text(self) -> Any:
        return load_text(self._weights, self._family, self._dtype)

    @cached_property
    def _vae(self) -> Any:
        vae: Any = load_vae(self._weights, self._dtype)
        if _memory_bytes(self.device) < NARROW:
            vae.enable_tiling()
            scale = vae.tile_sample_min_size // vae.tile_latent_min_size
            vae.tile_sample_min_size, vae.tile_latent_min_size = TILE_PX, TILE_PX // scale
        return vae

    def latent_shape_of(self, size: Size | None) -> LatentShape:
        """Return the shape (C, h, w) of the latent of an image; the size None is the base's own."""
        return latent_shape(self.latent_shape, self.size[0] // self.latent_shape[2], size)

    def sized(self, cond: Conditioning, size: Size | None = None) -> Conditioning:
        """Return conditioning for images of a size, which SDXL takes as an input; the size None is the base's own."""
        ids = self._family.time_ids(size or self.size)
        return replace(cond, time_ids=None if ids is None else ids.to(cond.tokens.device).expand(len(cond), 6))

    @torch.no_grad()
    def encode(self, prompts: list[str], at_once: int = PROMPTS_AT_ONCE, size: Size | None = None) -> Conditioning:
        """Encode B prompts to conditioning on the CPU, in the encoders' dtype.

        Args:
            prompts: B prompts.
            at_once: Number of prompts in a batch.
            size: Size of the images; None for the base's own.
        """
        with self._on_device(*self._encoders):
            parts = [
                self._family.encode(self._text, prompts[k : k + at_once], self.device).to(_CPU)
                for k in range(0, len(prompts), at_once)
            ]
        return self.sized(Conditioning.cat(parts), size)

    @cached_property
    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """One row of conditioning of the empty prompt, as the pipeline's guidance uses it, on the device."""
        with self._on_device(*self._encoders):
            return self.sized(self._family.unconditional(self._text, self.device)).to(self.device)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """Decode (B, C, h, w) latents to (B, 3, H, W) float32 images in [0, 1], on the CPU."""
        with self._on_device(self._vae):
            return decoded(self._vae, z, self._scaling)

    def offload(self) -> None:
        """Move text encoders and autoencoder to the CPU until their next use, to free memory for training."""
        encoders, vae = self._encoders if "_text" in vars(self) else [], [self._vae] if "_vae" in vars(self) else []
        for module in (*encoders, *vae):
            module.to(_CPU)

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that the text encoders cut off; empty for most prompts."""
        tokenizer = self._text.tokenizer
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        start = tokenizer.model_max_length - 1
        if len(tokens) <= start + 1:
            return ""
        while start > 1 and not tokenizer.convert_ids_to_tokens(tokens[start - 1]).endswith(END_OF_WORD):
            start -= 1
        return str(tokenizer.decode(tokens[start:-1]))

    @property
    def _encoders(self) -> list[nn.Module]:
        return [getattr(self._text, name) for name in self._family.encoders]

    @contextmanager
    def _on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Keep modules on the device inside the context, and afterwards too if the device is large enough."""
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            if _memory_bytes(self.device) < ROOMY:
                for module in modules:
                    module.to(_CPU)


def decoded(vae: Any, z: Tensor, scaling: float) -> Tensor:
    """Decode (B, C, h, w) latents to (B, 3, H, W) float32 images in [0, 1], on the CPU.

    Args:
        vae: Autoencoder.
        z: Latents, on the autoencoder's device.
        scaling: Scaling factor of the UNet's latents over the autoencoder's.
    """
    image: Tensor = vae.decode((z / scaling).to(vae.dtype), return_dict=False)[0]
    return (image.float() / 2 + 0.5).clamp(0, 1).cpu()


_CPU = torch.device("cpu")


def _memory_bytes(device: torch.device) -> float:
    """Return a GPU's memory in bytes; infinite for others, where moving parts to the CPU saves nothing."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else float("inf")

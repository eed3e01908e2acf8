"""A base in memory: the network stays, text encoders and autoencoder are on the device only while they work."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from rapm_cli.bases.families import family_of
from rapm_cli.bases.parts import load_schedule, load_text, load_unet, load_vae
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.network.backbone import Backbone, Conditioning

END_OF_WORD = "</w>"  # of a token of the text encoders
PROMPTS_AT_ONCE = 32  # that the text encoders read
ROOMY, NARROW = 20 * 2**30, 10 * 2**30  # bytes of a device that all parts share, and of one that decodes in tiles
TILE_PX = 512  # side of a tile; the autoencoder's own are as large as its pictures, and save nothing


class LoadedBase:
    """A base model, each part of which is read from its files when it is first used.

    Args:
        weights: Its files.
        device: Where it computes.
        dtype: Of the network and the text encoders.

    Raises:
        InputError: The files are not those of a model that rapm knows.
    """

    def __init__(self, weights: Weights, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self._weights, self._dtype = device, weights, dtype
        self._family = family_of(weights)
        self._schedule = load_schedule(weights)
        for part in self._family.parts:
            weights.check(part)
        unet, vae = weights.config("unet"), weights.config("vae")
        side = unet.get("sample_size")
        if type(side) is not int:
            raise InputError(f"{weights.origin} draws latents of size {side}", "give a model of square pictures")
        scale = 2 ** (len(vae.get("block_out_channels", (64,))) - 1)
        self.latent_shape: tuple[int, int, int] = (unet.get("in_channels", 4), side, side)
        self._time_ids = self._family.time_ids(side * scale)
        self._scaling: float = vae.get("scaling_factor", 0.18215)
        if self.latent_shape[0] != vae.get("latent_channels", 4):
            raise InputError(
                f"{weights.origin} takes {self.latent_shape[0]} channels and its autoencoder makes "
                f"{vae.get('latent_channels', 4)}: it is for inpainting or editing",
                "give a text-to-image model",
            )

    def load(self) -> None:
        """Read every part now, so that what is wrong with one is told before hours of work.

        Raises:
            InputError: The files are not those of such a model.
        """
        _ = self.backbone, self._text, self._vae

    @cached_property
    def backbone(self) -> Backbone:
        """The network with its schedule, on the device for good."""
        return Backbone(load_unet(self._weights, self._dtype).to(self.device), self._schedule)

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

    @torch.no_grad()
    def encode(self, prompts: list[str], at_once: int = PROMPTS_AT_ONCE) -> Conditioning:
        """The conditioning of B prompts, on the CPU, in the encoders' dtype; so many are read at once."""
        with self._on_device(*self._encoders):
            parts = [
                self._family.encode(self._text, prompts[k : k + at_once], self.device).to(_CPU)
                for k in range(0, len(prompts), at_once)
            ]
        return self._sized(Conditioning.cat(parts))

    @cached_property
    @torch.no_grad()
    def unconditional(self) -> Conditioning:
        """The empty prompt's conditioning as the pipeline's guidance uses it, one row, on the device."""
        with self._on_device(*self._encoders):
            return self._sized(self._family.unconditional(self._text, self.device)).to(self.device)

    @torch.no_grad()
    def decode(self, z: Tensor) -> Tensor:
        """(B, C, h, w) latents to (B, 3, H, W) float32 pictures in [0, 1], on the CPU."""
        with self._on_device(self._vae):
            return decoded(self._vae, z, self._scaling)

    def offload(self) -> None:
        """Take text encoders and autoencoder off the device, each until it is used again: training wants the room."""
        encoders, vae = self._encoders if "_text" in vars(self) else [], [self._vae] if "_vae" in vars(self) else []
        for module in (*encoders, *vae):
            module.to(_CPU)

    def unread(self, prompt: str) -> str:
        """The words of a prompt that the text encoders do not read, or not to their ends; none for most prompts."""
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

    def _sized(self, cond: Conditioning) -> Conditioning:
        ids = None if self._time_ids is None else self._time_ids.to(cond.tokens.device).expand(len(cond), 6)
        return Conditioning(cond.tokens, cond.pooled, ids)

    @contextmanager
    def _on_device(self, *modules: nn.Module) -> Iterator[None]:
        """Inside, the modules are on the device; afterwards too where there is room for all of the base."""
        for module in modules:
            module.to(self.device)
        try:
            yield
        finally:
            if _memory_bytes(self.device) < ROOMY:
                for module in modules:
                    module.to(_CPU)


def decoded(vae: Any, z: Tensor, scaling: float) -> Tensor:
    """(B, C, h, w) latents to (B, 3, H, W) float32 pictures in [0, 1], on the CPU.

    Args:
        vae: Autoencoder.
        z: On its device.
        scaling: Of the network's latents, over the autoencoder's own.
    """
    picture: Tensor = vae.decode((z / scaling).to(vae.dtype), return_dict=False)[0]
    return (picture.float() / 2 + 0.5).clamp(0, 1).cpu()


_CPU = torch.device("cpu")


def _memory_bytes(device: torch.device) -> float:
    """Memory of a card of its own; a CPU's is where the parts come from, so that moving them there saves nothing."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else float("inf")

"""The attribute reader: a small classifier of the solids and the background in a demo image.

The prompt accuracy is computed from its classes; FD-demo and KD-demo, which are not FID and KID, from its features.
"""

from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn

from rapm_cli.bases.demo.world import ATTRIBUTES

FEATURES = 64


class Reader(nn.Module):
    """Network from images to one class for each of `ATTRIBUTES`."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *self._stage(3, 16, stride=2),
            *self._stage(16, 32, stride=2),
            *self._stage(32, 64, stride=2),
            *self._stage(64, 64, stride=1),
            *self._stage(64, 96, stride=2),
            nn.Conv2d(96, 32, 1),
            nn.Flatten(),
            nn.Linear(32 * 8 * 8, FEATURES),
        )
        self.mean: Tensor
        self.deviation: Tensor
        self.register_buffer("mean", torch.zeros(FEATURES))  # mean of the raw features of true images
        self.register_buffer("deviation", torch.ones(FEATURES))
        self.heads = nn.ModuleList(nn.Linear(FEATURES, len(classes)) for classes in ATTRIBUTES.values())

    @staticmethod
    def _stage(width_in: int, width_out: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(width_in, width_out, 3, stride, padding=1), nn.GroupNorm(8, width_out), nn.SiLU()]

    def features(self, images: Tensor) -> Tensor:
        """Return the features that the metrics compare.

        Args:
            images: (B, 3, 128, 128) RGB in [0, 1].

        Returns:
            (B, 64) float32; each has mean 0 and variance 1 over true images, so none outweighs another.
        """
        features: Tensor = (self.body(images * 2 - 1) - self.mean) / self.deviation
        return features

    @torch.no_grad()
    def standardise(self, images: Tensor) -> None:
        """Set the features' mean and deviation from (N, 3, 128, 128) true images."""
        raw = torch.cat([self.body(part * 2 - 1) for part in images.split(32)])
        self.mean.copy_(raw.mean(dim=0))
        self.deviation.copy_(raw.std(dim=0))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Return (B, classes) logits of each attribute for (B, 3, 128, 128) images, in the order of `ATTRIBUTES`."""
        features = nn.functional.silu(self.body(images * 2 - 1))
        return [head(features) for head in self.heads]

    @torch.no_grad()
    def read(self, images: Tensor) -> Tensor:
        """Return the (B, 8) int64 classes of (B, 3, 128, 128) images, in the columns of `world.labels`."""
        return torch.stack([logits.argmax(dim=1) for logits in self(images)], dim=1)


@cache
def load_reader(path: Path) -> Reader:
    """Return the shipped reader, in float32 on the CPU."""
    from safetensors.torch import load_file

    reader = Reader().eval().requires_grad_(False)
    reader.load_state_dict({name: value.float() for name, value in load_file(path).items()})
    return reader

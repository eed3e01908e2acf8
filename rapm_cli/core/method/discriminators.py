"""Discriminators: frozen features of a noised latent, and small trained heads on them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.network.backbone import Backbone, Conditioning

Features = Callable[[Backbone, Tensor, Tensor, Conditioning], list[Tensor]]


@dataclass(frozen=True)
class DiscriminatorKind:
    """How a discriminator sees, and what judges.

    Args:
        features: (backbone, z, t, cond) to tensors (B, C_k, H_k, W_k); frozen, shared by both discriminators.
        channels: C_k of each, from the backbone.
        head: Module from (B, C_k, H_k, W_k) to patch logits, for a given C_k.
    """

    features: Features
    channels: Callable[[Backbone], list[int]]
    head: Callable[[int], nn.Module]


DISCRIMINATORS: Registry[DiscriminatorKind] = Registry("discriminator")


class Discriminator(nn.Module):
    """Trained heads, one for each frozen feature."""

    def __init__(self, kind: DiscriminatorKind, backbone: Backbone, seed: int, position: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(seed, "discriminator", position).initial_seed())
            self.heads = nn.ModuleList(kind.head(channels) for channels in kind.channels(backbone))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Patch logits of each feature, high for what looks real."""
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]


def _groups(channels: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)


def _pointwise(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1), nn.GroupNorm(_groups(channels), channels), nn.LeakyReLU(0.01)
    )


class PointwiseHead(nn.Module):
    """1x1 conv, GroupNorm, LeakyReLU, the same again on a residual, and one logit for each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _pointwise(channels), _pointwise(channels)
        self.logit = nn.Conv2d(channels, 1, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """(B, C, H, W) feature to (B, 1, H, W) logits."""
        hidden = self.first(feature)
        logits: Tensor = self.logit(hidden + self.second(hidden))
        return logits


def latent_head(channels: int) -> nn.Module:
    """A small convolutional network on the latent itself: no pass through the backbone, little memory."""
    return nn.Sequential(
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 64, 4, stride=2, padding=1),
        nn.GroupNorm(8, 64),
        nn.LeakyReLU(0.2),
        nn.Conv2d(64, 128, 4, stride=2, padding=1),
        nn.GroupNorm(8, 128),
        nn.LeakyReLU(0.2),
        nn.Conv2d(128, 1, 3, padding=1),
    )


# The frozen teacher's down and mid blocks, as in PCM.
DISCRIMINATORS.add("unet")(
    DiscriminatorKind(
        features=lambda backbone, z, t, cond: backbone.features(z, t, cond),
        channels=lambda backbone: backbone.tap_channels,
        head=PointwiseHead,
    )
)
# The deepest of these alone.
DISCRIMINATORS.add("unet-mid")(
    DiscriminatorKind(
        features=lambda backbone, z, t, cond: backbone.features(z, t, cond)[-1:],
        channels=lambda backbone: backbone.tap_channels[-1:],
        head=PointwiseHead,
    )
)
# The low-memory choice.
DISCRIMINATORS.add("latent")(
    DiscriminatorKind(
        features=lambda backbone, z, t, cond: [z],
        channels=lambda backbone: [backbone.unet.config.in_channels],
        head=latent_head,
    )
)

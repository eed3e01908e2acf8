"""Discriminators: small trained heads on frozen features of a noised latent."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.network.backbone import Backbone, Conditioning, Denoiser

Features = Callable[[Denoiser, Tensor, Tensor, Conditioning], list[Tensor]]


@dataclass(frozen=True)
class DiscriminatorKind:
    """A kind of discriminator: its features, and the head on each of them.

    Args:
        features: Function from (teacher, z, t, cond) to frozen tensors (B, C_k, H_k, W_k), which all discriminators
            share.
        channels: Function from the backbone to the number of channels C_k of each feature.
        head: Function from C_k to a module that maps (B, C_k, H_k, W_k) to patch logits.
    """

    features: Features
    channels: Callable[[Backbone], list[int]]
    head: Callable[[int], nn.Module]


DISCRIMINATORS: Registry[DiscriminatorKind] = Registry("discriminator")


class Discriminator(nn.Module):
    """One trained head for each frozen feature.

    Args:
        kind: Kind of the discriminator.
        backbone: The network whose features it sees.
        seed: Seed of the run.
        position: Name of the target that is real to it; with the seed it fixes the first weights.
    """

    def __init__(self, kind: DiscriminatorKind, backbone: Backbone, seed: int, position: str) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(seed, "discriminator", position).initial_seed())
            self.heads = nn.ModuleList(kind.head(channels) for channels in kind.channels(backbone))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return the patch logits of each feature; they are high for what looks real.

        Args:
            features: (B, C_k, H_k, W_k) frozen features, in the order of the kind's `channels`.

        Returns:
            (B, 1, H, W) logits for each feature; the head fixes H and W.
        """
        return [head(feature) for head, feature in zip(self.heads, features, strict=True)]


def _groups(channels: int) -> int:
    return next(groups for groups in (32, 16, 8, 4, 2, 1) if channels % groups == 0)


def _pointwise(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 1), nn.GroupNorm(_groups(channels), channels), nn.LeakyReLU(0.01)
    )


class PointwiseHead(nn.Module):
    """1x1 convolution, GroupNorm and LeakyReLU, the same again as a residual, and one logit for each place."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = _pointwise(channels), _pointwise(channels)
        self.logit = nn.Conv2d(channels, 1, 1)

    def forward(self, feature: Tensor) -> Tensor:
        """Map a (B, C, H, W) feature to (B, 1, H, W) logits."""
        hidden = self.first(feature)
        logits: Tensor = self.logit(hidden + self.second(hidden))
        return logits


def latent_head(channels: int) -> nn.Module:
    """Return a small convolutional network on the latent itself; it needs little memory and no pass of the backbone."""
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


# The down and mid blocks of the frozen teacher, as in PCM.
DISCRIMINATORS.add("unet")(
    DiscriminatorKind(
        features=lambda teacher, z, t, cond: teacher.features(z, t, cond),
        channels=lambda backbone: backbone.tap_channels,
        head=PointwiseHead,
    )
)
# The mid block alone.
DISCRIMINATORS.add("unet-mid")(
    DiscriminatorKind(
        features=lambda teacher, z, t, cond: teacher.features(z, t, cond)[-1:],
        channels=lambda backbone: backbone.tap_channels[-1:],
        head=PointwiseHead,
    )
)
# The noised latent itself: the choice for little memory.
DISCRIMINATORS.add("latent")(
    DiscriminatorKind(
        features=lambda teacher, z, t, cond: [z],
        channels=lambda backbone: [backbone.unet.config.in_channels],
        head=latent_head,
    )
)

"""Adversarial losses on frozen features: the student's part, the discriminators' own, and the methods that use both."""

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.base import CriticResult, Method, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.discriminators import DISCRIMINATORS, Discriminator
from rapm_cli.core.method.losses import hinge_discriminator_mean, hinge_student_mean
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.flat_weights import MasterWeights
from rapm_cli.core.network.schedule import noise_forward
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import DeviceMetrics

# Settings of the discriminators, for methods that have them.
ADVERSARIAL_OPTIONS = frozenset(
    {"adversarial_weight", "discriminators", "discriminator", "discriminator_noise", "discriminator_learning_rate"}
)
BETAS, WEIGHT_DECAY = (0.0, 0.999), 1e-3  # of the discriminators' AdamW, as PCM's


class AdversarialLoss:
    """One discriminator for each of some positions; all of them see the same frozen features.

    Args:
        context: The network, the settings and the random numbers of the training.
        positions: Names of the targets that have a discriminator, such as "relative".
    """

    def __init__(self, context: TrainingContext, positions: tuple[str, ...]) -> None:
        config, backbone = context.config, context.backbone
        self.context, self.kind = context, DISCRIMINATORS[config.discriminator]
        self.discriminators = {
            position: Discriminator(self.kind, backbone, config.seed, position).to(backbone.device)
            for position in positions
        }
        named = {
            f"{position}.{name}": value
            for position, discriminator in self.discriminators.items()
            for name, value in discriminator.named_parameters()
        }
        weights, rate = MasterWeights(named, torch.float32), config.discriminator_learning_rate
        self.optimizer = GuardedAdamW(weights, rate, betas=BETAS, weight_decay=WEIGHT_DECAY)

    def features(
        self, latents: dict[str, Tensor], cond: Conditioning, n: int, iteration: int
    ) -> dict[str, list[Tensor]]:
        """Compute the frozen features of latents at edge n, noised to random times of the configured range.

        All latents go through the network in one batch. Each has its own noise. All share their times, so that a
        discriminator cannot tell them apart by these.

        Args:
            latents: (B, C, H, W) latents by name; the names are part of what fixes their noise.
            cond: Conditioning of the B images.
            n: Edge of the latents.
            iteration: Counts from 0.

        Returns:
            By name, the features that the kind of discriminator wants, (B, C_k, H_k, W_k) each.
        """
        context, count = self.context, len(latents)
        z = torch.cat(list(latents.values()))
        low = max(context.edges[n], 0)
        high = {"edge": low + 1, "slot": context.edges[n + 1], "all": context.edges[-1]}
        t = context.integers(
            low, high[context.config.discriminator_noise], len(cond), "discriminator time", iteration, n
        ).repeat(count)
        noise = torch.cat(
            [context.noise(latent, "discriminator noise", iteration, n, name) for name, latent in latents.items()]
        )
        noised = noise_forward(z, noise, context.edges[n], t, context.schedule)
        teacher = context.backbone.teacher
        features = self.kind.features(teacher, noised, upload(t, z.device), Conditioning.cat([cond] * count))
        return {name: [f.chunk(count)[k] for f in features] for k, name in enumerate(latents)}

    def generator_loss(
        self, z_student: Tensor, cond: Conditioning, n: int, iteration: int
    ) -> tuple[Tensor, tuple[Tensor, ...], DeviceMetrics]:
        """Compute the student's part: how far its step is from looking real to each discriminator.

        Args:
            z_student: (B, C, H, W) the student's latent at edge n, in its graph.
            cond: Conditioning of the B images.
            n: Edge of the latent.
            iteration: Counts from 0.

        Returns:
            The sum of the losses over the positions, in the graph; the features of `z_student`, outside the graph; the
            loss of each position.
        """
        fake = self.features({"fake": z_student}, cond, n, iteration)["fake"]
        total, parts = torch.zeros((), device=z_student.device), {}
        for position, discriminator in self.discriminators.items():
            part = hinge_student_mean(discriminator(fake))
            parts[position] = part.detach()
            total = total + part
        return total, tuple(feature.detach() for feature in fake), DeviceMetrics(adversarial=parts)

    def discriminator_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult:
        """Compute the discriminators' own part: the targets are real, the student's features are fake.

        Args:
            slot: The targets at edge n by position, and the features that `generator_loss` returned.
            cond: Conditioning of the B images.
            n: Edge of the targets.
            iteration: Counts from 0.
        """
        with torch.no_grad():
            targets = {position: slot.targets[position] for position in self.discriminators}
            real = self.features(targets, cond, n, iteration)
        fake = list(slot.fake_features)
        total, metrics = torch.zeros((), device=fake[0].device), DeviceMetrics()
        for position, discriminator in self.discriminators.items():
            real_logits, fake_logits = discriminator(real[position]), discriminator(fake)
            part = hinge_discriminator_mean(real_logits, fake_logits)
            metrics |= DeviceMetrics(
                discriminator={position: part.detach()},
                real_logits={position: torch.stack([logits.detach().mean() for logits in real_logits])},
                fake_logits={position: torch.stack([logits.detach().mean() for logits in fake_logits])},
            )
            total = total + part
        return CriticResult(total, metrics)


class AdversarialMethod(Method):
    """A method whose student is also trained against discriminators, unless the settings give these no weight.

    Args:
        context: The network, the grids and the random numbers of the training.
        positions: Names of the targets that have a discriminator; empty for none.
    """

    options = ADVERSARIAL_OPTIONS

    def __init__(self, context: TrainingContext, positions: tuple[str, ...]) -> None:
        super().__init__(context)
        self.adversarial = AdversarialLoss(context, positions) if positions else None

    @property
    def critics(self) -> dict[str, GuardedAdamW]:
        """The discriminators, all in one optimizer."""
        return {"discriminators": self.adversarial.optimizer} if self.adversarial else {}

    def critic_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult | None:
        """Compute the loss of the discriminators: each target is real, the student's step is fake."""
        return self.adversarial.discriminator_loss(slot, cond, n, iteration) if self.adversarial else None

    def _with_adversarial(
        self, loss: Tensor, metrics: DeviceMetrics, z_student: Tensor, cond: Conditioning, n: int, iteration: int
    ) -> tuple[Tensor, DeviceMetrics, tuple[Tensor, ...]]:
        """Add the adversarial loss of the student's step; return loss, metrics and the features for `critic_loss`."""
        if not self.adversarial:
            return loss, metrics, ()
        adversarial, fake_features, more = self.adversarial.generator_loss(z_student, cond, n, iteration)
        return loss + self.context.config.adversarial_weight * adversarial, metrics | more, fake_features

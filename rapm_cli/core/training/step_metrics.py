"""What one slot reports: tensors on the device, which are read as plain numbers in one transfer."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from rapm_cli.core.training.distributed import World

TARGET, LOSS, GRADIENT, DISCRIMINATOR = "target", "loss", "gradient", "discriminator"  # values of `skipped`


@dataclass
class StepMetrics:
    """The numbers that one slot of one iteration reports; its fields are the keys of a slot in the log.

    Args:
        n: The edge that the slot ends at.
        skipped: What was not finite, so that no update was made: "target", "loss", "gradient" or "discriminator". It is
            "network" if the trained weights themselves are not finite, and empty if all is well.
        distance: Distance to each target, by name.
        adversarial: The student's adversarial loss, by the discriminator's position.
        discriminator: Loss of each discriminator, by position.
        real_logits: Mean logit of each tap on real latents, by position.
        fake_logits: Mean logit of each tap on the student's latents, by position.
    """

    n: int
    skipped: str = ""
    distance: dict[str, float] = field(default_factory=dict)
    adversarial: dict[str, float] = field(default_factory=dict)
    discriminator: dict[str, float] = field(default_factory=dict)
    real_logits: dict[str, list[float]] = field(default_factory=dict)
    fake_logits: dict[str, list[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class DeviceMetrics:
    """The measurements of `StepMetrics` as tensors on the device, before anything waits for them.

    Args:
        distance: Scalar distance to each target, by name.
        adversarial: The student's scalar adversarial loss, by the discriminator's position.
        discriminator: Scalar loss of each discriminator, by position.
        real_logits: (K,) mean logit on each of K features of real latents, by position.
        fake_logits: (K,) mean logit on each feature of the student's latents, by position.
    """

    distance: dict[str, Tensor] = field(default_factory=dict)
    adversarial: dict[str, Tensor] = field(default_factory=dict)
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    real_logits: dict[str, Tensor] = field(default_factory=dict)
    fake_logits: dict[str, Tensor] = field(default_factory=dict)

    @property
    def groups(self) -> list[dict[str, Tensor]]:
        """The five groups in the order of the fields."""
        return [self.distance, self.adversarial, self.discriminator, self.real_logits, self.fake_logits]

    def __or__(self, other: "DeviceMetrics") -> "DeviceMetrics":
        return DeviceMetrics(*(mine | theirs for mine, theirs in zip(self.groups, other.groups, strict=True)))


@dataclass(frozen=True)
class UpdateFlags:
    """Flags on the device that say what the updates of a slot found finite.

    Args:
        are_targets_finite: False if a target holds a value that is not finite.
        is_loss_finite: False if the loss of the first optimizer that updates is not finite. That is the student, unless
            it has no turn.
        is_skipped: 1 if that one made no update, else 0.
        are_critics_skipped: 1 if a later one made no update, else 0; None if there is none.
    """

    are_targets_finite: Tensor
    is_loss_finite: Tensor
    is_skipped: Tensor
    are_critics_skipped: Tensor | None


def read_metrics(metrics: DeviceMetrics, flags: UpdateFlags, n: int, world: World) -> StepMetrics:
    """Wait for the device once and return the means over all processes.

    Args:
        metrics: Measurements of the slot, in this process.
        flags: What the slot's updates found finite, in this process.
        n: The edge that the slot ends at.
        world: The processes that train together.
    """
    states = [flags.are_targets_finite, flags.is_loss_finite, flags.is_skipped, flags.are_critics_skipped]
    values = [value for group in metrics.groups for value in group.values()]
    values += [state for state in states if state is not None]
    flat = torch.cat([value.detach().float().reshape(-1) for value in values])
    world.average([flat])
    numbers = iter(flat.tolist())
    distance, adversarial, discriminator, real, fake = (
        {name: [next(numbers) for _ in range(value.numel())] for name, value in group.items()}
        for group in metrics.groups
    )
    are_targets_finite, is_loss_finite, is_skipped, are_critics_skipped = (
        next(numbers) if state is not None else 0.0 for state in states
    )
    step = StepMetrics(
        n,
        distance={name: value[0] for name, value in distance.items()},
        adversarial={name: value[0] for name, value in adversarial.items()},
    )
    if is_skipped:
        step.skipped = TARGET if are_targets_finite < 1 else LOSS if is_loss_finite < 1 else GRADIENT
        return step
    step.discriminator = {name: value[0] for name, value in discriminator.items()}
    step.real_logits, step.fake_logits = real, fake
    step.skipped = DISCRIMINATOR if are_critics_skipped else ""
    return step

"""What one slot reports, gathered on the device and read in one piece."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rapm_cli.core.training.distributed import World

TARGET, LOSS, GRADIENT, DISCRIMINATOR = "target", "loss", "gradient", "discriminator"  # what was not finite


@dataclass
class SlotLosses:
    """What one slot of one iteration reports.

    Args:
        n: The edge that the slot ends at.
        skipped: What was not finite: the target, loss, gradient or discriminator, from which no update was made, or the
            network, all that is trained; empty where all is well.
        distance: To each of the targets, by name.
    """

    n: int
    skipped: str = ""
    distance: dict[str, float] = field(default_factory=dict)
    adversarial: dict[str, float] = field(default_factory=dict)
    discriminator: dict[str, float] = field(default_factory=dict)
    real_logits: dict[str, list[float]] = field(default_factory=dict)  # by position, one for each tap
    fake_logits: dict[str, list[float]] = field(default_factory=dict)


@dataclass
class SlotLog:
    """The same as tensors on the device, by position; flags of what is finite beside them."""

    distance: dict[str, Tensor] = field(default_factory=dict)
    adversarial: dict[str, Tensor] = field(default_factory=dict)
    discriminator: dict[str, Tensor] = field(default_factory=dict)
    real_logits: dict[str, Tensor] = field(default_factory=dict)
    fake_logits: dict[str, Tensor] = field(default_factory=dict)
    are_goals_finite: Tensor | None = None
    is_loss_finite: Tensor | None = None
    is_lost: Tensor | None = None  # 1 where the weights whose turn it was, the student's most often, were not updated
    are_judges_lost: Tensor | None = None

    def check_goals(self, goals: Iterable[Tensor]) -> None:
        """Note whether targets are finite."""
        self.are_goals_finite = torch.stack([goal.isfinite().all() for goal in goals]).all()

    def read(self, n: int, world: World) -> SlotLosses:
        """Wait for the device once, and say what it reports; means over all processes."""
        groups = [self.distance, self.adversarial, self.discriminator, self.real_logits, self.fake_logits]
        flags = [self.are_goals_finite, self.is_loss_finite, self.is_lost, self.are_judges_lost]
        values = [value for group in groups for value in group.values()] + [flag for flag in flags if flag is not None]
        flat = torch.cat([value.detach().float().reshape(-1) for value in values])
        world.average([flat])
        numbers = iter(flat.tolist())
        distance, adversarial, discriminator, real, fake = (
            {name: [next(numbers) for _ in range(value.numel())] for name, value in group.items()} for group in groups
        )
        are_goals_finite, is_loss_finite, is_lost, are_judges_lost = (
            next(numbers) if flag is not None else 0.0 for flag in flags
        )
        losses = SlotLosses(
            n,
            distance={name: value[0] for name, value in distance.items()},
            adversarial={name: value[0] for name, value in adversarial.items()},
        )
        if is_lost:
            losses.skipped = TARGET if are_goals_finite < 1 else LOSS if is_loss_finite < 1 else GRADIENT
            return losses
        losses.discriminator = {name: value[0] for name, value in discriminator.items()}
        losses.real_logits, losses.fake_logits = real, fake
        losses.skipped = DISCRIMINATOR if are_judges_lost else ""
        return losses

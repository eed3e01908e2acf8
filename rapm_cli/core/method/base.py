"""The interface between a distillation method and the trainer, and the registry of methods."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from rapm_cli.core.common.registry import Registry
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.samplers import DDIM, Sampler
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import DeviceMetrics


@dataclass(frozen=True)
class SlotResult:
    """What a method finds for the student in one slot.

    Args:
        loss: Scalar loss in the student's graph; None if the student has no turn in this slot.
        z_next: (B, C, H, W) latent that the next slot starts from, outside the graph.
        targets: Latents that the losses of the slot compare with, by name, outside the graph. If one is not finite, the
            slot is skipped because of its target.
        metrics: Measurements to report.
        fake_features: Frozen features (B, C_k, H_k, W_k) of the student's step, outside the graph, for discriminators
            that need no second pass; empty if there are none.
    """

    loss: Tensor | None
    z_next: Tensor
    targets: dict[str, Tensor]
    metrics: DeviceMetrics
    fake_features: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class CriticResult:
    """What a method finds for its critics in one slot.

    Args:
        loss: Scalar loss in the critics' graph.
        metrics: Measurements to report.
    """

    loss: Tensor
    metrics: DeviceMetrics


class Method(ABC):
    """How to train a student on a teacher's trajectories.

    Nothing in a method waits for the device.

    Args:
        context: The network, the grids and the random numbers of the training.
    """

    asks_teacher: ClassVar[bool] = False  # True if it evaluates the teacher itself, beside the stored trajectories
    options: ClassVar[frozenset[str]] = frozenset()  # settings that not every method uses, and this one does

    def __init__(self, context: TrainingContext) -> None:
        self.context = context

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """Return the sampler of its students, given the settings of a training as JSON values."""
        return DDIM

    @property
    def critics(self) -> dict[str, GuardedAdamW]:
        """What is trained beside the student, by name; a slot that skips the student's update skips theirs too."""
        return {}

    @property
    def slots(self) -> list[int]:
        """The edges that the updates of an iteration end at, in their order."""
        return list(reversed(range(self.context.num_slots)))

    @property
    def period(self) -> int:
        """The number of updates after which the kinds of work repeat."""
        return 1

    @abstractmethod
    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compute the student's loss in one slot.

        Args:
            batch: This process's trajectories, on the backbone's device.
            n: The edge that the slot ends at.
            z_start: (B, C, H, W) the `z_next` of the slot before; in the first slot the noise.
            iteration: Counts from 0; with the seed it fixes every random number of the slot.
        """

    def critic_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult | None:
        """Compute the loss of all critics in one slot; None without critics.

        The trainer calls it once the student's graph is gone, so that memory never holds both.

        Args:
            slot: What `student_loss` returned.
            cond: Conditioning of the batch.
            n: The edge that the slot ends at.
            iteration: Counts from 0.
        """
        return None


METHODS: Registry[type[Method]] = Registry("method")


def sampler_of(training: Mapping[str, Any]) -> Sampler:
    """Return the sampler of a student, given the settings of its training as JSON values.

    Old files name no method; their students are RAPM's.

    Raises:
        ConfigError: The settings name an unknown method.
    """
    return METHODS[training.get("method", "rapm")].sampler(training)

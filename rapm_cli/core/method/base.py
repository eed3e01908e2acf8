"""What a method of distillation is to the trainer, and the registry of those that there are."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from rapm_cli.core.common.registry import Registry
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.samplers import DDIM, Sampler
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import SlotLog


class Method(ABC):
    """One way to train a student on a teacher's trajectories, an update at a time.

    Args:
        course: What it trains on.
        student: The LoRA's learner.
    """

    asks_teacher: ClassVar[bool] = False  # for more than its stored trajectories
    options: ClassVar[frozenset[str]] = frozenset()  # settings that this one heeds and others may not

    def __init__(self, course: Course, student: GuardedAdamW) -> None:
        self.course, self.student = course, student

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """How its students are sampled, for settings as JSON values."""
        return DDIM

    @property
    def others(self) -> dict[str, GuardedAdamW]:
        """What is trained beside the student, by name; no update of it is made where the student's fails."""
        return {}

    @property
    def slots(self) -> list[int]:
        """The edges that the updates of an iteration end at, in their order."""
        return list(reversed(range(self.course.num_slots)))

    @property
    def period(self) -> int:
        """Updates after which their kinds of work repeat."""
        return 1

    @abstractmethod
    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """Take the gradients of one update in the learners, and change nothing else.

        Nothing in here waits for the device.

        Args:
            batch: This process's trajectories, on the backbone's device.
            n: The edge that the update ends at.
            z_start: (B, C, H, W) what the update before returned; at first the noise.
            iteration: Counts from 0; with the seed it fixes every random number used here.
            log: Is told of losses and targets.

        Returns:
            (B, C, H, W) where the next update starts, detached.
        """


METHODS: Registry[type[Method]] = Registry("method")


def sampler_of(training: Mapping[str, Any]) -> Sampler:
    """How a student is sampled that was trained with these settings, as JSON values; files of before have no method.

    Raises:
        ConfigError: There is no such method.
    """
    return METHODS[training.get("method", "rapm")].sampler(training)

"""RAPM: the student walks all slots, and is drawn to two positions at the end of each.

Source: arXiv:2503.20744.
"""

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.adversarial import JUDGED, Judges
from rapm_cli.core.method.base import METHODS, Method
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, relative_target, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import SlotLog


@METHODS.add("rapm")
class RelativeAndAbsolutePositions(Method):
    """One update in each slot, the noisiest first, each from where the student ended the last one."""

    options = JUDGED | {"delta", "relative_weight", "absolute_weight", "slot_weights", "start_from"}

    def __init__(self, course: Course, student: GuardedAdamW) -> None:
        super().__init__(course, student)
        config = course.config
        self.weights = {"absolute": config.absolute_weight, "relative": config.relative_weight}
        self.judges = Judges(course, config.discriminated_positions) if config.discriminated_positions else None

    @property
    def others(self) -> dict[str, GuardedAdamW]:
        """The discriminators."""
        return {"discriminators": self.judges.learner} if self.judges else {}

    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """The student's step, both targets, both discriminators."""
        course, cond = self.course, batch.cond
        goals = self._goals(batch, n)  # first, so that no graph waits in memory for them
        log.check_goals(goals.values())
        z_student = student_step(course.backbone, z_start, course.edges[n + 1], course.edges[n], cond)
        loss = torch.zeros((), device=z_student.device)
        for position, goal in goals.items():
            distance = pseudo_huber_mean(z_student, goal)
            log.distance[position] = distance.detach()
            loss = loss + self.weights[position] * distance
        fake = []
        if self.judges:
            fake = self.judges.see({"fake": z_student}, n, cond, iteration)["fake"]
            loss = loss + course.config.adversarial_weight * self.judges.adversarial(fake, log)
        self.student.backward(loss * self._slot_weight(n))
        if self.judges:
            self.judges.learn(fake, goals, n, cond, iteration, log)
        return self._next_start(z_student.detach(), batch.z_teacher[:, n], iteration, n)

    def _goals(self, batch: Trajectories, n: int) -> dict[str, Tensor]:
        course, goals = self.course, {"absolute": absolute_target(batch.z_teacher, n)}
        if course.config.needs_relative_target:
            z_ahead, t_ahead = batch.z_ahead[:, n], course.ahead[n]
            goals["relative"] = relative_target(course.backbone, z_ahead, t_ahead, course.edges[n], batch.cond)
        return goals

    def _next_start(self, mine: Tensor, teachers: Tensor, iteration: int, n: int) -> Tensor:
        course = self.course
        if course.config.start_from != "mixed":
            return mine if course.config.start_from == "student" else teachers
        is_mine = course.integers(0, 2, len(mine), "start", iteration, n).bool()
        return torch.where(upload(is_mine.view(-1, 1, 1, 1), mine.device), mine, teachers)

    def _slot_weight(self, n: int) -> float:
        weights = self.course.config.slot_weights
        return weights[self.course.num_slots - 1 - n] if weights else 1.0

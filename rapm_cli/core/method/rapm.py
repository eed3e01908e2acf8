"""RAPM: the student walks through all slots and is pulled to two targets at the end of each.

Source: arXiv:2503.20744.
"""

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.adversarial import ADVERSARIAL_OPTIONS, AdversarialMethod
from rapm_cli.core.method.base import METHODS, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, relative_target, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.step_metrics import DeviceMetrics


@METHODS.add("rapm")
class RelativeAndAbsolutePositions(AdversarialMethod):
    """One update in each slot, the noisiest first, each from where the student ended the slot before."""

    options = ADVERSARIAL_OPTIONS | {"delta", "relative_weight", "absolute_weight", "slot_weights", "start_from"}

    def __init__(self, context: TrainingContext) -> None:
        config = context.config
        super().__init__(context, config.discriminated_positions)
        self.weights = {"absolute": config.absolute_weight, "relative": config.relative_weight}

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compute the distances to both targets and the adversarial losses of the student's step."""
        context, cond = self.context, batch.cond
        targets = self._targets(batch, n)  # before the student's step, so that its graph does not wait for them
        z_student = student_step(context.student, z_start, context.edges[n + 1], context.edges[n], cond)
        distances = {position: pseudo_huber_mean(z_student, target) for position, target in targets.items()}
        loss = torch.zeros((), device=z_student.device)
        for position, distance in distances.items():
            loss = loss + self.weights[position] * distance
        metrics = DeviceMetrics(distance={position: distance.detach() for position, distance in distances.items()})
        loss, metrics, fake_features = self._with_adversarial(loss, metrics, z_student, cond, n, iteration)
        z_next = self._next_start(z_student.detach(), batch.z_teacher[:, n], iteration, n)
        return SlotResult(loss * self._slot_weight(n), z_next, targets, metrics, fake_features)

    def _targets(self, batch: Trajectories, n: int) -> dict[str, Tensor]:
        context, targets = self.context, {"absolute": absolute_target(batch.z_teacher, n)}
        if context.config.needs_relative_target:
            z_ahead, t_ahead = batch.z_ahead[:, n], context.ahead[n]
            targets["relative"] = relative_target(context.student, z_ahead, t_ahead, context.edges[n], batch.cond)
        return targets

    def _next_start(self, students: Tensor, teachers: Tensor, iteration: int, n: int) -> Tensor:
        context = self.context
        if context.config.start_from != "mixed":
            return students if context.config.start_from == "student" else teachers
        is_students = context.integers(0, 2, len(students), "start", iteration, n).bool()
        return torch.where(upload(is_students.view(-1, 1, 1, 1), students.device), students, teachers)

    def _slot_weight(self, n: int) -> float:
        weights = self.context.config.slot_weights
        return weights[self.context.num_slots - 1 - n] if weights else 1.0

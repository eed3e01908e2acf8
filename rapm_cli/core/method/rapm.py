"""RAPM: the student walks through all slots and is drawn to two positions at the end of each.

Source: arXiv:2503.20744.
"""

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.adversarial import ADVERSARIAL_OPTIONS, AdversarialLoss
from rapm_cli.core.method.base import METHODS, CriticResult, Method, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, relative_target, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import DeviceMetrics


@METHODS.add("rapm")
class RelativeAndAbsolutePositions(Method):
    """One update in each slot, the noisiest first, each from where the student ended the slot before."""

    options = ADVERSARIAL_OPTIONS | {"delta", "relative_weight", "absolute_weight", "slot_weights", "start_from"}

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        config = context.config
        self.weights = {"absolute": config.absolute_weight, "relative": config.relative_weight}
        positions = config.discriminated_positions
        self.adversarial = AdversarialLoss(context, positions) if positions else None

    @property
    def critics(self) -> dict[str, GuardedAdamW]:
        """The discriminators."""
        return {"discriminators": self.adversarial.learner} if self.adversarial else {}

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
        fake: tuple[Tensor, ...] = ()
        if self.adversarial:
            adversarial, fake, more = self.adversarial.generator_loss(z_student, n, cond, iteration)
            loss, metrics = loss + context.config.adversarial_weight * adversarial, metrics | more
        z_next = self._next_start(z_student.detach(), batch.z_teacher[:, n], iteration, n)
        return SlotResult(loss * self._slot_weight(n), z_next, targets, metrics, fake)

    def critic_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult | None:
        """Compute the loss of both discriminators: each target is real, the student's step is fake."""
        return self.adversarial.discriminator_loss(slot, n, cond, iteration) if self.adversarial else None

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

"""KD, plain knowledge distillation: regression to the teacher's end point through all of the student's steps.

Source: arXiv:2101.02388.
"""

from torch import Tensor

from rapm_cli.core.method.base import METHODS, Method, SlotResult
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.step_metrics import DeviceMetrics

ENDPOINT = "endpoint"


@METHODS.add("kd")
class KnowledgeDistillation(Method):
    """One update in each iteration; its gradient crosses all slots, so memory holds N steps."""

    @property
    def slots(self) -> list[int]:
        """The last slot alone."""
        return [0]

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compute the distance of the student's whole walk from the teacher's end point."""
        context, target, z = self.context, absolute_target(batch.z_teacher, 0), z_start
        for slot in reversed(range(context.num_slots)):
            z = student_step(context.student, z, context.edges[slot + 1], context.edges[slot], batch.cond)
        loss = pseudo_huber_mean(z, target)
        return SlotResult(loss, z.detach(), {ENDPOINT: target}, DeviceMetrics(distance={ENDPOINT: loss.detach()}))

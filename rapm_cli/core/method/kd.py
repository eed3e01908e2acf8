"""KD, plain knowledge distillation: regression to the teacher's end point through all of the student's steps.

Source: arXiv:2101.02388.
"""

from torch import Tensor

from rapm_cli.core.method.base import METHODS, Method
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.training.step_metrics import SlotLog


@METHODS.add("kd")
class KnowledgeDistillation(Method):
    """One update an iteration, whose gradient crosses all slots: memory holds N steps."""

    @property
    def slots(self) -> list[int]:
        """The last one alone."""
        return [0]

    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """The student's whole walk."""
        course, goal = self.course, absolute_target(batch.z_teacher, 0)
        log.check_goals([goal])
        z = z_start
        for slot in reversed(range(course.num_slots)):
            z = student_step(course.backbone, z, course.edges[slot + 1], course.edges[slot], batch.cond)
        loss = pseudo_huber_mean(z, goal)
        log.distance["endpoint"] = loss.detach()
        self.student.backward(loss)
        return z.detach()

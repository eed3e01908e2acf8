"""PCM, phased consistency: inside a slot, all points of the teacher's path lead the student to the same end.

Source: arXiv:2405.18407 and its published code for SDXL with LoRA and a discriminator.
"""

import torch
from torch import Tensor

from rapm_cli.core.method.adversarial import JUDGED, Judges
from rapm_cli.core.method.base import METHODS, Method
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.schedule import add_noise, ddim_step
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import SlotLog

CONSISTENCY = "consistency"


@METHODS.add("pcm")
class PhasedConsistency(Method):
    """One update in each slot, for every picture at a random fine step of it.

    Its noised pictures are the teacher's own, because there are no real ones.
    """

    # Differs: student and discriminator learn in the same update, which wastes no pass; there they take turns. The
    # teacher's guidance is one number instead of a range.
    asks_teacher = True
    options = JUDGED

    def __init__(self, course: Course, student: GuardedAdamW) -> None:
        super().__init__(course, student)
        self.judges = Judges(course, (CONSISTENCY,)) if course.config.discriminated_positions else None

    @property
    def others(self) -> dict[str, GuardedAdamW]:
        """The discriminator."""
        return {"discriminators": self.judges.learner} if self.judges else {}

    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """The student's step to the end of the slot, from a noised picture and from one teacher step on."""
        course, cond, steps, schedule = self.course, batch.cond, self.course.fine_steps, self.course.backbone.schedule
        place = n * steps + course.integers(1, steps + 1, len(cond), "fine step", iteration, n)
        t, s, edge = course.grid[place], course.grid[place - 1], course.edges[n]
        clean = batch.z_teacher[:, 0]
        noise = course.noise(clean, "noised picture", iteration, n)
        z = add_noise(clean, noise, t, schedule)
        with torch.no_grad():
            z_next = ddim_step(z, course.teacher_noise(z, t, cond), t, s, schedule)
            goal = student_step(course.backbone, z_next, s, edge, cond)  # where s is the edge, z_next itself
        log.check_goals([goal])
        z_student = student_step(course.backbone, z, t, edge, cond)
        loss = pseudo_huber_mean(z_student, goal)
        log.distance[CONSISTENCY] = loss.detach()
        fake = []
        if self.judges:
            fake = self.judges.see({"fake": z_student}, n, cond, iteration)["fake"]
            loss = loss + course.config.adversarial_weight * self.judges.adversarial(fake, log)
        self.student.backward(loss)
        if self.judges:
            self.judges.learn(fake, {CONSISTENCY: goal}, n, cond, iteration, log)
        return z_start

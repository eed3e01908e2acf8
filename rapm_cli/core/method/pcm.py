"""PCM, phased consistency: inside a slot, all points of the teacher's path lead the student to the same end.

Source: arXiv:2405.18407 and its published code for SDXL with LoRA and a discriminator.
"""

import torch
from torch import Tensor

from rapm_cli.core.method.adversarial import AdversarialMethod
from rapm_cli.core.method.base import METHODS, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import CONSISTENCY, student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.schedule import add_noise, ddim_step
from rapm_cli.core.training.step_metrics import DeviceMetrics


@METHODS.add("pcm")
class PhasedConsistency(AdversarialMethod):
    """One update in each slot; every image is at a random fine step of it.

    The images that are noised are the teacher's own, because there are no real ones.
    """

    # Differs: student and discriminator learn in the same update, which wastes no pass; there they take turns. The
    # teacher's guidance is one number instead of a range.
    asks_teacher = True

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context, (CONSISTENCY,) if context.config.discriminated_positions else ())

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compare two student steps to the end of the slot: from a noised image, and from one teacher step later."""
        context, cond, steps, clean = self.context, batch.cond, self.context.fine_steps, batch.z_teacher[:, 0]
        place = n * steps + context.integers(1, steps + 1, len(cond), "fine step", iteration, n)
        t, s, edge = context.grid[place], context.grid[place - 1], context.edges[n]
        # "noised picture" is a seed: renaming it would change every result.
        noise = context.noise(clean, "noised picture", iteration, n)
        z = add_noise(clean, noise, t, context.schedule)
        with torch.no_grad():
            z_later = ddim_step(z, context.teacher_prediction(z, t, cond), t, s, context.schedule)
            target = student_step(context.student, z_later, s, edge, cond)  # if s is the edge, z_later itself
        z_student = student_step(context.student, z, t, edge, cond)
        loss = pseudo_huber_mean(z_student, target)
        metrics = DeviceMetrics(distance={CONSISTENCY: loss.detach()})
        loss, metrics, fake_features = self._with_adversarial(loss, metrics, z_student, cond, n, iteration)
        return SlotResult(loss, z_start, {CONSISTENCY: target}, metrics, fake_features)

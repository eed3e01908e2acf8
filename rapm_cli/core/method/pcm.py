"""PCM, phased consistency: inside a slot, all points of the teacher's path lead the student to the same end.

Source: arXiv:2405.18407 and its published code for SDXL with LoRA and a discriminator.
"""

import torch
from torch import Tensor

from rapm_cli.core.method.adversarial import ADVERSARIAL_OPTIONS, AdversarialLoss
from rapm_cli.core.method.base import METHODS, CriticResult, Method, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import student_step
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.schedule import add_noise, ddim_step
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import DeviceMetrics

CONSISTENCY = "consistency"


@METHODS.add("pcm")
class PhasedConsistency(Method):
    """One update in each slot; every image is at a random fine step of it.

    The images that are noised are the teacher's own, because there are no real ones.
    """

    # Differs: student and discriminator learn in the same update, which wastes no pass; there they take turns. The
    # teacher's guidance is one number instead of a range.
    asks_teacher = True
    options = ADVERSARIAL_OPTIONS

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        has_discriminator = bool(context.config.discriminated_positions)
        self.adversarial = AdversarialLoss(context, (CONSISTENCY,)) if has_discriminator else None

    @property
    def critics(self) -> dict[str, GuardedAdamW]:
        """The discriminator."""
        return {"discriminators": self.adversarial.learner} if self.adversarial else {}

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compare two student steps to the end of the slot: from a noised image, and from one teacher step later."""
        context, cond, steps, clean = self.context, batch.cond, self.context.fine_steps, batch.z_teacher[:, 0]
        place = n * steps + context.integers(1, steps + 1, len(cond), "fine step", iteration, n)
        t, s, edge = context.grid[place], context.grid[place - 1], context.edges[n]
        noise = context.noise(clean, "noised picture", iteration, n)
        z = add_noise(clean, noise, t, context.schedule)
        with torch.no_grad():
            z_later = ddim_step(z, context.teacher_noise(z, t, cond), t, s, context.schedule)
            target = student_step(context.student, z_later, s, edge, cond)  # if s is the edge, z_later itself
        z_student = student_step(context.student, z, t, edge, cond)
        loss = pseudo_huber_mean(z_student, target)
        metrics = DeviceMetrics(distance={CONSISTENCY: loss.detach()})
        fake: tuple[Tensor, ...] = ()
        if self.adversarial:
            adversarial, fake, more = self.adversarial.generator_loss(z_student, n, cond, iteration)
            loss, metrics = loss + context.config.adversarial_weight * adversarial, metrics | more
        return SlotResult(loss, z_start, {CONSISTENCY: target}, metrics, fake)

    def critic_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult | None:
        """Compute the discriminator's loss: the target is real, the student's step is fake."""
        return self.adversarial.discriminator_loss(slot, n, cond, iteration) if self.adversarial else None

"""The discriminators of some positions, and what they and the student learn from each other."""

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.discriminators import DISCRIMINATORS, Discriminator
from rapm_cli.core.method.losses import hinge_discriminator_mean, hinge_student_mean
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.flat_weights import MasterWeights
from rapm_cli.core.network.schedule import noise_forward
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import SlotLog

# Settings that say whether there are judges, which, and how they learn.
JUDGED = frozenset(
    {"adversarial_weight", "discriminators", "discriminator", "discriminator_noise", "discriminator_learning_rate"}
)


class Judges:
    """A discriminator for each of some positions; all see the same frozen features.

    Args:
        course: Whose settings and network.
        positions: Names of what is real, such as "relative".
    """

    def __init__(self, course: Course, positions: tuple[str, ...]) -> None:
        config, backbone = course.config, course.backbone
        self._course, self._kind = course, DISCRIMINATORS[config.discriminator]
        self.of = {
            position: Discriminator(self._kind, backbone, config.seed, position).to(backbone.device)
            for position in positions
        }
        named = {
            f"{position}.{name}": value
            for position, judge in self.of.items()
            for name, value in judge.named_parameters()
        }
        weights, rate = MasterWeights(named, torch.float32), config.discriminator_learning_rate
        self.learner = GuardedAdamW(weights, rate, betas=(0.0, 0.999), weight_decay=1e-3)  # as PCM's

    def see(self, latents: dict[str, Tensor], n: int, cond: Conditioning, iteration: int) -> dict[str, list[Tensor]]:
        """Frozen features of latents at edge n, noised to a time that the settings choose, in one pass.

        Every kind of latent has its own noise; all share the time, so that a discriminator cannot tell by it.
        """
        course, count = self._course, len(latents)
        z = torch.cat(list(latents.values()))
        low = max(course.edges[n], 0)
        high = {"edge": low + 1, "slot": course.edges[n + 1], "all": course.edges[-1]}
        t = course.integers(
            low, high[course.config.discriminator_noise], len(cond), "discriminator time", iteration, n
        ).repeat(count)
        noise = torch.cat(
            [course.noise(latent, "discriminator noise", iteration, n, kind) for kind, latent in latents.items()]
        )
        noised = noise_forward(z, noise, course.edges[n], t, course.backbone.schedule)
        features = self._kind.features(course.backbone, noised, upload(t, z.device), Conditioning.cat([cond] * count))
        return {kind: [f.chunk(count)[k] for f in features] for k, kind in enumerate(latents)}

    def adversarial(self, fake: list[Tensor], log: SlotLog) -> Tensor:
        """The student's part: the sum over the positions of what its features are short of looking real."""
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.of.items():
            part = hinge_student_mean(judge(fake))
            log.adversarial[position] = part.detach()
            total = total + part
        return total

    def learn(
        self,
        fake: list[Tensor],
        goals: dict[str, Tensor],
        n: int,
        cond: Conditioning,
        iteration: int,
        log: SlotLog,
    ) -> None:
        """Take the gradients of the discriminators' own part.

        Args:
            fake: Features of the student's latent.
            goals: By position, the latents at edge n that are real; others are passed over.
            n: The edge.
            cond: The prompts' conditioning.
            iteration: Counts from 0.
            log: Is told losses and logits.
        """
        with torch.no_grad():
            real = self.see({position: goals[position] for position in self.of}, n, cond, iteration)
        fake = [feature.detach() for feature in fake]
        total = torch.zeros((), device=fake[0].device)
        for position, judge in self.of.items():
            real_logits, fake_logits = judge(real[position]), judge(fake)
            part = hinge_discriminator_mean(real_logits, fake_logits)
            log.discriminator[position] = part.detach()
            log.real_logits[position] = torch.stack([logits.detach().mean() for logits in real_logits])
            log.fake_logits[position] = torch.stack([logits.detach().mean() for logits in fake_logits])
            total = total + part
        self.learner.backward(total)

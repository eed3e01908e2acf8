"""DMD2, distribution matching: two scores tell where the student's pictures should move, and a GAN helps.

Source: arXiv:2405.14867 and its published code for SDXL.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.base import METHODS, Method
from rapm_cli.core.method.context import Course
from rapm_cli.core.method.discriminators import PointwiseHead
from rapm_cli.core.method.losses import softplus_mean
from rapm_cli.core.method.samplers import RENOISED, Sampler, student_clean
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.flat_weights import MasterWeights
from rapm_cli.core.network.lora_layers import FAKE
from rapm_cli.core.network.schedule import add_noise, clean_estimate
from rapm_cli.core.network.student import attach_lora, lora_parameters
from rapm_cli.core.training.optimizer import GuardedAdamW, backward
from rapm_cli.core.training.step_metrics import SlotLog

STUDENT_GAN, FAKE_GAN = 5e-3, 1e-2  # weights of the GAN's two parts
MATCHED = (20, 981)  # times at which the scores are asked: 20 to 980


@METHODS.add("dmd2")
class DistributionMatching(Method):
    """N updates an iteration of the fake score, a second LoRA, and one in `fake_updates` of the student.

    What is real to its discriminator are the teacher's own pictures.
    """

    # Differs: the fake score is a LoRA of the student's rank, so that one network serves all; it and its
    # discriminator's head have the discriminators' rate, not the student's; the head judges patches, so that pictures
    # of any size fit. The teacher's pictures keep the noise of the first timestep, 2.9 %, and count as clean.
    asks_teacher = True
    options = frozenset({"fake_updates", "discriminator_learning_rate"})

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """New noise after each step, at the slots' borders."""
        return RENOISED

    def __init__(self, course: Course, student: GuardedAdamW) -> None:
        super().__init__(course, student)
        backbone, config = course.backbone, course.config
        attach_lora(backbone, config.rank, config.alpha, config.seed, role=FAKE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(config.seed, "discriminator").initial_seed())
            self.head = PointwiseHead(backbone.tap_channels[-1]).to(backbone.device)
        score, head = lora_parameters(backbone, FAKE), dict(self.head.named_parameters())
        rate = config.discriminator_learning_rate
        self.score = GuardedAdamW(MasterWeights(score, backbone.dtype), rate, weight_decay=0.01)  # as DMD2's
        self.judge = GuardedAdamW(MasterWeights(head, torch.float32), rate, weight_decay=0.01)  # as DMD2's

    @property
    def period(self) -> int:
        """From one of the student's turns to the next."""
        return self.course.config.fake_updates

    @property
    def others(self) -> dict[str, GuardedAdamW]:
        """The fake score, and the discriminator's head on its features."""
        return {"fake-score": self.score, "discriminator": self.judge}

    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """Pictures of the student's own walk, to a random step of it, and what the two scores say of them."""
        course, cond, real = self.course, batch.cond, batch.z_teacher[:, 0]
        turn = (iteration + 1) * course.num_slots - 1 - n
        is_students = turn % course.config.fake_updates == 0
        with torch.set_grad_enabled(is_students):
            drawn = self._drawn(real, cond, iteration, n)
        if is_students:
            loss = self._matching(drawn, cond, iteration, n)
            log.distance["matching"] = loss.detach()
            adversarial = softplus_mean(-self._logits(drawn, cond, iteration, n, "student"))
            log.adversarial["real"] = adversarial.detach()
            self.student.backward(loss + STUDENT_GAN * adversarial)
        drawn = drawn.detach()
        log.check_goals([drawn, real])
        score = self._score_loss(drawn, cond, iteration, n)
        log.distance["score"] = score.detach()
        fake_logits = self._logits(drawn, cond, iteration, n, "judge", "fake")
        real_logits = self._logits(real, cond, iteration, n, "judge", "real")
        judged = softplus_mean(fake_logits) + softplus_mean(-real_logits)
        log.discriminator["real"] = judged.detach()
        log.real_logits["real"], log.fake_logits["real"] = (x.detach().mean()[None] for x in (real_logits, fake_logits))
        backward(score + FAKE_GAN * judged, self.score, self.judge)
        return z_start

    def _drawn(self, like: Tensor, cond: Conditioning, iteration: int, n: int) -> Tensor:
        """What the student's walk from fresh noise takes for clean at a random step; only that one has a gradient."""
        course, edges = self.course, self.course.edges
        chance = generator_for(course.config.seed, "last step", iteration, n)
        last = int(torch.randint(course.num_slots, (1,), generator=chance))
        z = course.noise(like, "fresh noise", iteration, n, course.num_slots)
        with torch.no_grad():
            for slot in range(course.num_slots - 1, last, -1):
                clean = student_clean(course.backbone, z, edges[slot + 1], cond)
                noise = course.noise(like, "fresh noise", iteration, n, slot)
                z = add_noise(clean, noise, edges[slot], course.backbone.schedule)
        return student_clean(course.backbone, z, edges[last + 1], cond)

    def _matching(self, drawn: Tensor, cond: Conditioning, iteration: int, n: int) -> Tensor:
        """A loss whose gradient is the difference of the two scores, over the mean distance to the real one's clean."""
        backbone = self.course.backbone
        with torch.no_grad():
            z, t = self._noised(drawn, MATCHED, iteration, n, "matching")[:2]
            real = clean_estimate(z, self.course.teacher_noise(z, t, cond), t, backbone.schedule)
            with backbone.role(FAKE):
                fake = clean_estimate(z, backbone.predict_noise(z, t, cond), t, backbone.schedule)
            scale = (drawn - real).abs().mean(dim=(1, 2, 3), keepdim=True)
            goal = drawn - (fake - real) / scale
        return 0.5 * (drawn - goal).square().mean()

    def _score_loss(self, drawn: Tensor, cond: Conditioning, iteration: int, n: int) -> Tensor:
        """Mean squared error of the fake score's noise estimate on what the student draws."""
        backbone = self.course.backbone
        z, t, noise = self._noised(drawn, (0, backbone.schedule.length), iteration, n, "score")
        with backbone.role(FAKE):
            return (backbone.predict_noise(z, t, cond) - noise).square().mean()

    def _logits(self, z: Tensor, cond: Conditioning, iteration: int, n: int, purpose: str, kind: str = "") -> Tensor:
        """Of the head, on the fake score's features of a latent noised to any time, which all kinds of it share."""
        noised, t, _ = self._noised(z, (0, self.course.backbone.schedule.length), iteration, n, purpose, kind)
        features = self.course.backbone.features(noised, upload(t, z.device), cond, FAKE)
        logits: Tensor = self.head(features[-1])
        return logits

    def _noised(
        self, z: Tensor, times: tuple[int, int], iteration: int, n: int, purpose: str, kind: str = ""
    ) -> tuple[Tensor, Tensor, Tensor]:
        """A clean latent at random times in a range; the times; the noise."""
        t = self.course.integers(*times, len(z), f"time of the {purpose}", iteration, n)
        noise = self.course.noise(z, f"noise of the {purpose}", iteration, n, kind)
        return add_noise(z, noise, t, self.course.backbone.schedule), t, noise

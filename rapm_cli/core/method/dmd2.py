"""DMD2, distribution matching: two scores say where the student's samples should move, and a GAN helps.

Source: arXiv:2405.14867 and its published code for SDXL.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.base import METHODS, CriticResult, Method, SlotResult
from rapm_cli.core.method.context import TrainingContext
from rapm_cli.core.method.discriminators import PointwiseHead
from rapm_cli.core.method.losses import softplus_mean
from rapm_cli.core.method.samplers import RENOISED, Sampler, student_clean
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.flat_weights import MasterWeights
from rapm_cli.core.network.lora_layers import FAKE_SCORE
from rapm_cli.core.network.schedule import add_noise, clean_estimate, noise_estimate
from rapm_cli.core.network.student import attach_lora, lora_parameters
from rapm_cli.core.training.optimizer import GuardedAdamW
from rapm_cli.core.training.step_metrics import DeviceMetrics

STUDENT_GAN_WEIGHT, CRITIC_GAN_WEIGHT = 5e-3, 1e-2
CRITIC_WEIGHT_DECAY = 0.01
MATCHING_TIMES = (20, 981)  # the scores are compared at 20 to 980


@METHODS.add("dmd2")
class DistributionMatching(Method):
    """N updates in each iteration of the fake score, a second LoRA; one in `fake_updates` also updates the student.

    The discriminator's real images are the teacher's own.
    """

    # Differs: the fake score is a LoRA of the student's rank, so that one network serves all; it and its
    # discriminator's head have the discriminators' rate, not the student's; the gradient is clipped as for every
    # method; the head scores patches, so that images of any size fit. The teacher's images keep the noise of the first
    # timestep, 2.9 %, and count as clean.
    asks_teacher = True
    options = frozenset({"fake_updates", "discriminator_learning_rate"})

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """Return the sampler that adds new noise after each step, at the slots' borders."""
        return RENOISED

    def __init__(self, context: TrainingContext) -> None:
        super().__init__(context)
        backbone, config = context.backbone, context.config
        attach_lora(backbone, config.rank, config.alpha, config.seed, role=FAKE_SCORE)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator_for(config.seed, "discriminator").initial_seed())
            self.head = PointwiseHead(backbone.tap_channels[-1]).to(backbone.device)
        score = MasterWeights(lora_parameters(backbone, FAKE_SCORE), backbone.dtype)
        head = MasterWeights(dict(self.head.named_parameters()), torch.float32)
        rate = config.discriminator_learning_rate
        self.score = GuardedAdamW(score, rate, weight_decay=CRITIC_WEIGHT_DECAY)
        self.discriminator = GuardedAdamW(head, rate, weight_decay=CRITIC_WEIGHT_DECAY)

    @property
    def period(self) -> int:
        """The number of updates from one turn of the student to the next."""
        return self.context.config.fake_updates

    @property
    def critics(self) -> dict[str, GuardedAdamW]:
        """The fake score, and the discriminator's head on its features."""
        return {"fake-score": self.score, "discriminator": self.discriminator}

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Sample the student at a random step of its own walk; in its turn, compare the sample by the two scores."""
        context, cond, real = self.context, batch.cond, batch.z_teacher[:, 0]
        turn = (iteration + 1) * context.num_slots - 1 - n
        is_students = turn % context.config.fake_updates == 0
        with torch.set_grad_enabled(is_students):
            sample = self._sample(real, cond, n, iteration)
        loss, metrics = None, DeviceMetrics()
        if is_students:
            matching = self._matching_loss(sample, cond, n, iteration)
            adversarial = softplus_mean(-self._logits(sample, cond, n, iteration, "student"))
            loss = matching + STUDENT_GAN_WEIGHT * adversarial
            metrics = DeviceMetrics({"matching": matching.detach()}, {"real": adversarial.detach()})
        return SlotResult(loss, z_start, {"sample": sample.detach(), "real": real}, metrics)

    def critic_loss(self, slot: SlotResult, cond: Conditioning, n: int, iteration: int) -> CriticResult:
        """Compute the fake score's denoising loss on the sample, and its discriminator's loss."""
        sample, real = slot.targets["sample"], slot.targets["real"]
        score = self._score_loss(sample, cond, n, iteration)
        # "judge" is a seed: renaming it would change every result.
        fake_logits = self._logits(sample, cond, n, iteration, "judge", "fake")
        real_logits = self._logits(real, cond, n, iteration, "judge", "real")
        adversarial = softplus_mean(fake_logits) + softplus_mean(-real_logits)
        metrics = DeviceMetrics(
            distance={"score": score.detach()},
            discriminator={"real": adversarial.detach()},
            real_logits={"real": real_logits.detach().mean()[None]},
            fake_logits={"real": fake_logits.detach().mean()[None]},
        )
        return CriticResult(score + CRITIC_GAN_WEIGHT * adversarial, metrics)

    def _sample(self, like: Tensor, cond: Conditioning, n: int, iteration: int) -> Tensor:
        """Walk from fresh noise and return the clean estimate at a random step; only that step has a gradient."""
        context, edges = self.context, self.context.edges
        chance = generator_for(context.config.seed, "last step", iteration, n)
        last = int(torch.randint(context.num_slots, (1,), generator=chance))
        z = context.noise(like, "fresh noise", iteration, n, context.num_slots)
        with torch.no_grad():
            for slot in range(context.num_slots - 1, last, -1):
                clean = student_clean(context.student, z, edges[slot + 1], cond)
                noise = context.noise(like, "fresh noise", iteration, n, slot)
                z = add_noise(clean, noise, edges[slot], context.schedule)
        return student_clean(context.student, z, edges[last + 1], cond)

    def _matching_loss(self, sample: Tensor, cond: Conditioning, n: int, iteration: int) -> Tensor:
        """Return a loss whose gradient is the difference of the two scores over their scale.

        The scale of an image is the mean distance of the sample from the teacher's clean estimate.
        """
        context, fake_score = self.context, self.context.backbone.fake_score
        with torch.no_grad():
            z, t = self._noised(sample, MATCHING_TIMES, n, iteration, "matching")[:2]
            real = clean_estimate(z, context.teacher_prediction(z, t, cond), t, context.schedule)
            fake = clean_estimate(z, fake_score(z, t, cond), t, context.schedule)
            scale = (sample - real).abs().mean(dim=(1, 2, 3), keepdim=True)
            target = sample - (fake - real) / scale
        return 0.5 * (sample - target).square().mean()

    def _score_loss(self, sample: Tensor, cond: Conditioning, n: int, iteration: int) -> Tensor:
        """Return the mean squared error of the fake score's noise estimate on a noised sample."""
        z, t, noise = self._noised(sample, (0, self.context.schedule.length), n, iteration, "score")
        prediction = self.context.backbone.fake_score(z, t, cond)
        return (noise_estimate(z, prediction, t, self.context.schedule) - noise).square().mean()

    def _logits(self, z: Tensor, cond: Conditioning, n: int, iteration: int, purpose: str, kind: str = "") -> Tensor:
        """Return the head's logits on the fake score's features of a latent noised to any time.

        All kinds of latents of one purpose share their times; each has its own noise.
        """
        noised, t, _ = self._noised(z, (0, self.context.schedule.length), n, iteration, purpose, kind)
        features = self.context.backbone.fake_score.features(noised, upload(t, z.device), cond)
        logits: Tensor = self.head(features[-1])
        return logits

    def _noised(
        self, z: Tensor, times: tuple[int, int], n: int, iteration: int, purpose: str, kind: str = ""
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Noise a clean latent to random times in a range; return it, the times and the noise."""
        t = self.context.integers(*times, len(z), f"time of the {purpose}", iteration, n)
        noise = self.context.noise(z, f"noise of the {purpose}", iteration, n, kind)
        return add_noise(z, noise, t, self.context.schedule), t, noise

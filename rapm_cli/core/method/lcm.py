"""LCM, latent consistency: all points of the teacher's path lead the student to the same clean latent.

Source: arXiv:2310.04378 and diffusers' script for LoRA.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.base import METHODS, Method, SlotResult
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.samplers import LCM_TIMES, Sampler, lcm_sampler
from rapm_cli.core.method.targets import CONSISTENCY
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning, Denoiser
from rapm_cli.core.network.schedule import add_noise, clean_estimate, ddim_step
from rapm_cli.core.training.step_metrics import DeviceMetrics

SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the consistency function, as in diffusers' script


@METHODS.add("lcm")
class LatentConsistency(Method):
    """N updates in each iteration; in each, every image is at one of the `lcm_timesteps` timesteps, by chance.

    The images that are noised are the teacher's own, because there are no real ones.
    """

    # Differs: the teacher's guidance is one number, the one that RAPM's teacher has, instead of a range.
    asks_teacher = True
    options = frozenset({"lcm_timesteps"})

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """Return LCM's sampler on the timesteps of the training."""
        return lcm_sampler(training.get("lcm_times", LCM_TIMES))  # the name of `lcm_timesteps` in files

    def student_loss(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int) -> SlotResult:
        """Compare two clean latents of the student: from a noised image, and from one teacher step later."""
        context, cond, clean = self.context, batch.cond, batch.z_teacher[:, 0]
        count = context.config.lcm_timesteps
        length = context.schedule.length // count
        place = context.integers(1, count + 1, len(cond), "fine step", iteration, n)
        t, s = place * length - 1, (place - 1) * length - 1
        # "noised picture" is a seed: renaming it would change every result.
        noise = context.noise(clean, "noised picture", iteration, n)
        z = add_noise(clean, noise, t, context.schedule)
        with torch.no_grad():
            z_later = ddim_step(z, context.teacher_prediction(z, t, cond), t, s, context.schedule)
            target = consistency(context.student, z_later, s.clamp(min=0), cond)
        loss = pseudo_huber_mean(consistency(context.student, z, t, cond), target)
        return SlotResult(loss, z_start, {CONSISTENCY: target}, DeviceMetrics(distance={CONSISTENCY: loss.detach()}))


def consistency(student: Denoiser, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
    """Return the consistency function c_skip(t) z + c_out(t) x0(z, t), which at t = 0 is z itself.

    Args:
        student: The student.
        z: (B, C, H, W) latents at `t`.
        t: (B,) timesteps on the CPU.
        cond: Conditioning of the B images.
    """
    scaled, prediction = TIME_SCALE * t.float(), student(z, t, cond)
    c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
    c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
    skip, out = (upload(c.view(-1, 1, 1, 1), z.device) for c in (c_skip, c_out))
    return skip * z + out * clean_estimate(z, prediction, t, student.schedule)

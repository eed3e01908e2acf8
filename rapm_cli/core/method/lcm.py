"""LCM, latent consistency: all points of the teacher's path lead the student to the same clean latent.

Source: arXiv:2310.04378 and diffusers' script for LoRA.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.method.base import METHODS, Method
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.samplers import LCM_TIMES, Sampler, lcm_sampler
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.lora_layers import STUDENT
from rapm_cli.core.network.schedule import add_noise, clean_estimate, ddim_step
from rapm_cli.core.training.step_metrics import SlotLog

SIGMA_DATA, TIME_SCALE = 0.5, 10.0  # of the consistency function, as in that script


@METHODS.add("lcm")
class LatentConsistency(Method):
    """N updates an iteration, each for every picture at a random one of some times.

    Its noised pictures are the teacher's own, because there are no real ones.
    """

    # Differs: the teacher's guidance is one number, the one that RAPM's teacher has, instead of a range.
    asks_teacher = True
    options = frozenset({"lcm_timesteps"})

    @classmethod
    def sampler(cls, training: Mapping[str, Any]) -> Sampler:
        """LCM's own, on the times that it was trained at."""
        return lcm_sampler(training.get("lcm_times", LCM_TIMES))

    def slot(self, batch: Trajectories, n: int, z_start: Tensor, iteration: int, log: SlotLog) -> Tensor:
        """The student's clean latent from a noised picture, and from one teacher step on."""
        course, cond, clean = self.course, batch.cond, batch.z_teacher[:, 0]
        schedule = course.backbone.schedule
        count = course.config.lcm_timesteps
        length = schedule.length // count
        place = course.integers(1, count + 1, len(cond), "fine step", iteration, n)
        t, s = place * length - 1, (place - 1) * length - 1
        noise = course.noise(clean, "noised picture", iteration, n)
        z = add_noise(clean, noise, t, schedule)
        with torch.no_grad():
            z_next = ddim_step(z, course.teacher_noise(z, t, cond), t, s, schedule)
            goal = self._consistent(z_next, s.clamp(min=0), cond)
        log.check_goals([goal])
        loss = pseudo_huber_mean(self._consistent(z, t, cond), goal)
        log.distance["consistency"] = loss.detach()
        self.student.backward(loss)
        return z_start

    def _consistent(self, z: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The consistency function c_skip(t) z + c_out(t) x0(z, t), which at 0 is z itself."""
        backbone, scaled = self.course.backbone, TIME_SCALE * t.float()
        with backbone.role(STUDENT):
            noise = backbone.predict_noise(z, t, cond)
        c_skip = SIGMA_DATA**2 / (scaled**2 + SIGMA_DATA**2)
        c_out = scaled / (scaled**2 + SIGMA_DATA**2).sqrt()
        skip, out = (upload(c.view(-1, 1, 1, 1), z.device) for c in (c_skip, c_out))
        return skip * z + out * clean_estimate(z, noise, t, backbone.schedule)

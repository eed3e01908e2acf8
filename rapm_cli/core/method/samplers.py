"""N-step sampling with the student."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.common.device_copy import upload
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.method.targets import student_step
from rapm_cli.core.network.backbone import Conditioning, Denoiser
from rapm_cli.core.network.schedule import CLEAN, DDIM_SETTINGS, NoiseSchedule, add_noise, clean_estimate, slot_edges

LCM_TIMES = 50  # timesteps of LCM's training in diffusers' script; its sampler chooses among them


@dataclass(frozen=True)
class Sampler:
    """How to walk from noise to a clean latent in N evaluations.

    Args:
        scheduler: diffusers' name of the scheduler, without the word Scheduler.
        settings: Settings of that scheduler.
        times: Function from (N, T) to the N timesteps of the evaluations, noisiest first.
        is_renoised: True if every step goes to a clean latent and back to the next timestep with new noise; False if
            it goes straight there, as DDIM does.
    """

    scheduler: str
    settings: dict[str, Any]
    times: Callable[[int, int], list[int]]
    is_renoised: bool = False

    def recipe(self, num_slots: int, length: int = 1000) -> dict[str, Any]:
        """Return the description of the sampler that goes into the headers of LoRA files.

        Args:
            num_slots: N.
            length: Number of timesteps T of the schedule.

        Returns:
            diffusers' scheduler and its settings, N, the N timesteps, and a guidance scale of 1, as JSON values.

        Raises:
            ConfigError: The sampler cannot take N steps on this schedule.
        """
        about = {"steps": num_slots, "timesteps": self.times(num_slots, length), "guidance_scale": 1.0}
        return {"scheduler": self.scheduler, **self.settings, **about}


def _edges(num_slots: int, length: int) -> list[int]:
    return slot_edges(num_slots, length)[:0:-1]


def _lcm_times(num_slots: int, length: int, among: int) -> list[int]:
    """Choose N of `among` timesteps as diffusers' LCMScheduler does.

    Raises:
        ConfigError: N is above `among`, or the slots do not divide the schedule.
    """
    slot_edges(num_slots, length)
    if num_slots > among:
        raise ConfigError(f"--steps {num_slots} is above the {among} times of LCM", f"give at most {among}")
    step = length // among
    return [(among - among * k // num_slots) * step - 1 for k in range(num_slots)]


def lcm_sampler(among: int) -> Sampler:
    """Return the sampler of a student that LCM trained at `among` timesteps."""
    times = partial(_lcm_times, among=among)
    return Sampler("LCM", {"original_inference_steps": among}, times, is_renoised=True)


SAMPLERS: Registry[Sampler] = Registry("sampler")
DDIM = SAMPLERS.add("ddim")(Sampler("DDIM", DDIM_SETTINGS, _edges))
LCM = SAMPLERS.add("lcm")(lcm_sampler(LCM_TIMES))
RENOISED = SAMPLERS.add("dmd2")(Sampler("LCM", {"original_inference_steps": 1000}, _edges, is_renoised=True))


@torch.no_grad()
def sample_student(
    student: Denoiser, z: Tensor, cond: Conditioning, num_slots: int, sampler: Sampler = DDIM
) -> list[Tensor]:
    """Walk from noise to a clean latent without guidance.

    Args:
        student: The student; the teacher gives samples of the bare network.
        z: (B, C, H, W) noise.
        cond: Conditioning of the prompts.
        num_slots: N, the number of evaluations.
        sampler: The sampler. New noise is a function of each row of `z`, so that a row always gives the same image.

    Returns:
        N + 1 latents (B, C, H, W) by edge, `[0]` the clean one and `[N]` the noise.
    """
    times = [*sampler.times(num_slots, student.schedule.length), CLEAN]
    positions, seeds = [z], _digests(z) if sampler.is_renoised else []
    for t, s in pairwise(times):
        if not sampler.is_renoised:
            positions.append(student_step(student, positions[-1], t, s, cond))
            continue
        clean = student_clean(student, positions[-1], t, cond)
        positions.append(clean if s == CLEAN else _renoised(clean, seeds, s, student.schedule))
    return positions[::-1]


def student_clean(student: Denoiser, z: Tensor, t: int, cond: Conditioning) -> Tensor:
    """Return the student's estimate of the clean latent in `z` at `t`; arguments as in `student_step`."""
    return clean_estimate(z, student(z, t, cond), t, student.schedule)


def _renoised(clean: Tensor, seeds: list[str], s: int, schedule: NoiseSchedule) -> Tensor:
    rows = [torch.randn(clean.shape[1:], generator=generator_for("new noise", seed, s)) for seed in seeds]
    return add_noise(clean, upload(torch.stack(rows), clean.device), s, schedule)


def _digests(z: Tensor) -> list[str]:
    """Return a digest of each row of the noise."""
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in z.float().cpu()]

"""N-step sampling with the student."""

import hashlib
import math
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
from rapm_cli.core.network.schedule import (
    CLEAN,
    DDIM_SETTINGS,
    add_noise,
    clean_estimate,
    noise_forward,
    slot_edges,
)

TCD_GAMMA = 0.3  # share of the way to the next timestep that TCD noises again; diffusers' default
LCM_TIMES = 50  # timesteps of LCM's training in diffusers' script; its sampler chooses among them

NewNoise = Callable[[int], Tensor]  # timestep that the noise is for, to noise in the shape of the latents
Step = Callable[[Denoiser, Tensor, int, int, Conditioning, NewNoise], Tensor]


@dataclass(frozen=True)
class Sampler:
    """How to walk from noise to a clean latent in N evaluations.

    Args:
        scheduler: diffusers' name of the scheduler, without the word Scheduler.
        settings: Settings of that scheduler.
        times: Function from (N, T) to the N timesteps of the evaluations, noisiest first.
        step: Function from the student, a latent, its timestep, the next one, the conditioning and a source of new
            noise to the latent at the next timestep.
        is_renoised: True if a step adds new noise.
        is_scaled: True if the first latent is the noise at the strength of its timestep, not at full strength.
    """

    scheduler: str
    settings: dict[str, Any]
    times: Callable[[int, int], list[int]]
    step: Step
    is_renoised: bool = False
    is_scaled: bool = False

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
    return Sampler("LCM", {"original_inference_steps": among}, times, _renoise, is_renoised=True)


def _straight(student: Denoiser, z: Tensor, t: int, s: int, cond: Conditioning, new_noise: NewNoise) -> Tensor:
    return student_step(student, z, t, s, cond)


def _to_clean(student: Denoiser, z: Tensor, t: int, s: int, cond: Conditioning, new_noise: NewNoise) -> Tensor:
    """Go straight, and at last to the clean latent itself. Euler's method on the noise levels takes DDIM's steps."""
    return student_clean(student, z, t, cond) if s == CLEAN else student_step(student, z, t, s, cond)


def _renoise(student: Denoiser, z: Tensor, t: int, s: int, cond: Conditioning, new_noise: NewNoise) -> Tensor:
    clean = student_clean(student, z, t, cond)
    return clean if s == CLEAN else add_noise(clean, new_noise(s), s, student.schedule)


def _beyond(student: Denoiser, z: Tensor, t: int, s: int, cond: Conditioning, new_noise: NewNoise) -> Tensor:
    """Go beyond the next timestep, and back to it with new noise. Source: TCD, arXiv:2402.19159, algorithm 4."""
    if s == CLEAN:
        return student_step(student, z, t, s, cond)
    cleaner = math.floor((1 - TCD_GAMMA) * s)
    there = student_step(student, z, t, cleaner, cond)
    return noise_forward(there, new_noise(s), cleaner, torch.tensor(s), student.schedule)


SAMPLERS: Registry[Sampler] = Registry("sampler")
DDIM = SAMPLERS.add("ddim")(Sampler("DDIM", DDIM_SETTINGS, _edges, _straight))
LCM = SAMPLERS.add("lcm")(lcm_sampler(LCM_TIMES))
EULER = SAMPLERS.add("euler")(
    Sampler("EulerDiscrete", {"timestep_spacing": "trailing"}, _edges, _to_clean, is_scaled=True)
)
TCD = SAMPLERS.add("tcd")(
    Sampler(
        "TCD", {"original_inference_steps": LCM_TIMES}, partial(_lcm_times, among=LCM_TIMES), _beyond, is_renoised=True
    )
)
RENOISED = SAMPLERS.add("dmd2")(Sampler("LCM", {"original_inference_steps": 1000}, _edges, _renoise, is_renoised=True))


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
    strength = (1 - student.schedule.alpha_bar(times[0], z)).sqrt() if sampler.is_scaled else 1
    positions, seeds = [strength * z], _digests(z) if sampler.is_renoised else []
    for t, s in pairwise(times):
        positions.append(sampler.step(student, positions[-1], t, s, cond, lambda s: _new_noise(z, seeds, s)))
    return positions[::-1]


def _new_noise(like: Tensor, seeds: list[str], s: int) -> Tensor:
    rows = [torch.randn(like.shape[1:], generator=generator_for("new noise", seed, s)) for seed in seeds]
    return upload(torch.stack(rows), like.device)


def student_clean(student: Denoiser, z: Tensor, t: int, cond: Conditioning) -> Tensor:
    """Return the student's estimate of the clean latent in `z` at `t`; arguments as in `student_step`."""
    return clean_estimate(z, student(z, t, cond), t, student.schedule)


def _digests(z: Tensor) -> list[str]:
    """Return a digest of each row of the noise."""
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in z.float().cpu()]

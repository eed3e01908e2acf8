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
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.lora_layers import STUDENT
from rapm_cli.core.network.schedule import CLEAN, DDIM_SETTINGS, add_noise, clean_estimate, slot_edges

LCM_TIMES = 50  # that LCM is trained at, and its own are chosen from, in diffusers' script


@dataclass(frozen=True)
class Sampler:
    """How a student walks from noise to a clean latent.

    Args:
        scheduler: diffusers' name of it, without the word Scheduler.
        settings: Of that scheduler.
        times: (N, T) to the N times of its evaluations, noisiest first.
        is_renoised: Whether every step goes to a clean latent and back to the next time with new noise; otherwise it
            goes straight there, as DDIM does.
    """

    scheduler: str
    settings: dict[str, Any]
    times: Callable[[int, int], list[int]]
    is_renoised: bool = False

    def recipe(self, num_slots: int, length: int = 1000) -> dict[str, Any]:
        """How a student is sampled, for people and programs that read a file's header."""
        about = {"steps": num_slots, "timesteps": self.times(num_slots, length), "guidance_scale": 1.0}
        return {"scheduler": self.scheduler, **self.settings, **about}


def _edges(num_slots: int, length: int) -> list[int]:
    return slot_edges(num_slots, length)[:0:-1]


def _lcm_times(num_slots: int, length: int, among: int) -> list[int]:
    """As diffusers' LCMScheduler chooses them among so many.

    Raises:
        ConfigError: There are not so many, or the slots do not divide the schedule.
    """
    slot_edges(num_slots, length)
    if num_slots > among:
        raise ConfigError(f"--steps {num_slots} is above the {among} times of LCM", f"give at most {among}")
    step = length // among
    return [(among - among * k // num_slots) * step - 1 for k in range(num_slots)]


def lcm_sampler(among: int) -> Sampler:
    """That of a student of LCM which was trained at so many times."""
    times = partial(_lcm_times, among=among)
    return Sampler("LCM", {"original_inference_steps": among}, times, is_renoised=True)


SAMPLERS: Registry[Sampler] = Registry("sampler")
DDIM = SAMPLERS.add("ddim")(Sampler("DDIM", DDIM_SETTINGS, _edges))
LCM = SAMPLERS.add("lcm")(lcm_sampler(LCM_TIMES))
RENOISED = SAMPLERS.add("dmd2")(Sampler("LCM", {"original_inference_steps": 1000}, _edges, is_renoised=True))


@torch.no_grad()
def sample_student(
    backbone: Backbone, z: Tensor, cond: Conditioning, num_slots: int, sampler: Sampler = DDIM
) -> list[Tensor]:
    """The student's own walk from noise to a clean latent.

    Args:
        backbone: Network with a LoRA.
        z: (B, C, H, W) noise.
        cond: The prompts' conditioning.
        num_slots: N, which is the number of evaluations.
        sampler: How it walks; new noise is a function of each row of `z`, so that a row always draws the same picture.

    Returns:
        N + 1 latents (B, C, H, W) by edge, `[0]` the clean one and `[N]` the noise.
    """
    times = [*sampler.times(num_slots, backbone.schedule.length), CLEAN]
    positions, seeds = [z], _digests(z) if sampler.is_renoised else []
    for t, s in pairwise(times):
        if not sampler.is_renoised:
            positions.append(student_step(backbone, positions[-1], t, s, cond))
            continue
        clean = student_clean(backbone, positions[-1], t, cond)
        positions.append(clean if s == CLEAN else _renoised(clean, seeds, s, backbone))
    return positions[::-1]


def student_clean(backbone: Backbone, z: Tensor, t: int, cond: Conditioning) -> Tensor:
    """The clean latent that the student sees in `z` at `t`; arguments as of `student_step`."""
    with backbone.role(STUDENT):
        noise = backbone.predict_noise(z, t, cond)
    return clean_estimate(z, noise, t, backbone.schedule)


def _renoised(clean: Tensor, seeds: list[str], s: int, backbone: Backbone) -> Tensor:
    rows = [torch.randn(clean.shape[1:], generator=generator_for("new noise", seed, s)) for seed in seeds]
    return add_noise(clean, upload(torch.stack(rows), clean.device), s, backbone.schedule)


def _digests(z: Tensor) -> list[str]:
    """What identifies each row of the noise."""
    return [hashlib.sha256(row.contiguous().numpy().tobytes()).hexdigest() for row in z.float().cpu()]

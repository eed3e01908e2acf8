"""Networks that predict velocities, on a noise schedule that goes down to zero signal, against diffusers' samplers."""

import dataclasses

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler, LCMScheduler

from rapm_cli.core.method import METHODS
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.samplers import LCM, sample_student
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import rollout, walk_teacher
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.schedule import (
    DDIM_SETTINGS,
    NoiseSchedule,
    add_noise,
    clean_estimate,
    ddim_step,
    fine_grid,
    noise_forward,
)
from tests.conftest import tiny_unet

ZERO = NoiseSchedule.scaled_linear(prediction_type="v_prediction", has_zero_snr=True)
SETTINGS = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    **ZERO.settings,
}
GUIDANCE = 5.0
SMALL = TrainConfig(rank=2, iterations=1, batch_size=2, warmup=0)


@pytest.fixture
def backbone():
    return Backbone(tiny_unet(), ZERO)


@torch.no_grad()
def guided(backbone, z, t, cond, zeros):
    """The guided prediction as diffusers' pipelines compute it."""
    uncond = dataclasses.replace(zeros.expand(len(z)), time_ids=cond.time_ids)
    without, with_ = (backbone.teacher(z, int(t), each) for each in (uncond, cond))
    return without + GUIDANCE * (with_ - without)


def theirs(scheduler, steps, backbone, z, cond, zeros):
    """Every latent of a sampler of diffusers, as the network sees it, and the last."""
    scheduler.set_timesteps(steps)
    x, seen = z * scheduler.init_noise_sigma, []
    for t in scheduler.timesteps:
        seen.append(scheduler.scale_model_input(x, t))
        x = scheduler.step(guided(backbone, seen[-1], t, cond, zeros), t, x).prev_sample
    return [*seen, x]


def test_the_schedule_is_diffusers_down_to_nothing():
    scheduler = DDIMScheduler(**SETTINGS)
    torch.testing.assert_close(ZERO.alphas_cumprod, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)
    assert ZERO.alphas_cumprod[-1] == scheduler.alphas_cumprod[-1] == 0
    assert NoiseSchedule.scaled_linear().settings == {}


def test_an_estimate_of_noise_needs_a_signal():
    with pytest.raises(ValueError, match="velocities"):
        NoiseSchedule.scaled_linear(has_zero_snr=True)


@pytest.mark.parametrize("steps", [4, 20])
def test_a_guided_trajectory_is_that_of_diffusers_ddim(steps, backbone, make_cond, latents):
    cond, zeros = make_cond(2), make_cond(1).map(torch.zeros_like)
    scheduler = DDIMScheduler(**SETTINGS, **DDIM_SETTINGS)
    expected = theirs(scheduler, steps, backbone, latents(2), cond, zeros)
    times = fine_grid(4, steps // 4)
    assert times[:-1] == scheduler.timesteps.tolist()
    for mine, other in zip(
        walk_teacher(backbone.teacher, latents(2), times, cond, zeros, GUIDANCE), expected, strict=True
    ):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # numpy's, of diffusers
def test_a_guided_trajectory_is_that_of_diffusers_euler(backbone, make_cond, latents):
    """Euler has no zero signal: it begins at a noise level of 4,096, which shows in the fourth digit, and ends at 0."""
    cond, zeros = make_cond(2), make_cond(1).map(torch.zeros_like)
    scheduler = EulerDiscreteScheduler(**SETTINGS, timestep_spacing="trailing")
    *seen, end = theirs(scheduler, 20, backbone, latents(2), cond, zeros)
    *mine, last = walk_teacher(backbone.teacher, latents(2), fine_grid(4, 5), cond, zeros, GUIDANCE)
    for ours, other in zip(mine, seen, strict=True):
        torch.testing.assert_close(ours, other, rtol=0, atol=5e-3)
    prediction = guided(backbone, mine[-1], scheduler.timesteps[-1], cond, zeros)
    torch.testing.assert_close(clean_estimate(mine[-1], prediction, 49, ZERO), end, rtol=0, atol=5e-3)
    assert (last - end).abs().max() < 0.2  # ours keeps the noise of timestep 0


def test_new_noise_is_added_as_by_diffusers_lcm(backbone, make_cond, latents, monkeypatch):
    cond, drawn = make_cond(2), torch.randn(3, *latents(2).shape, generator=torch.Generator().manual_seed(5))
    scheduler = LCMScheduler(**SETTINGS, set_alpha_to_one=False, clip_sample=False, **LCM.settings)
    scheduler.set_timesteps(4)
    again, fresh = iter(drawn), iter(drawn)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **kwargs: next(again))
    monkeypatch.setattr("rapm_cli.core.method.samplers._new_noise", lambda like, seeds, s: next(fresh))
    x = latents(2)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(backbone.student(x, int(t), cond), t, x).prev_sample
    torch.testing.assert_close(sample_student(backbone.student, latents(2), cond, 4, LCM)[0], x, rtol=1e-4, atol=1e-4)


def test_a_step_from_no_signal_loses_nothing():
    """A latent of pure noise, the velocity -x0: the step knows x0 and the noise exactly."""
    clean, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(clean_estimate(noise, -clean, 999, ZERO), clean)
    torch.testing.assert_close(ddim_step(noise, -clean, 999, 749, ZERO), add_noise(clean, noise, 749, ZERO))
    torch.testing.assert_close(add_noise(clean, noise, 999, ZERO), noise)
    torch.testing.assert_close(noise_forward(clean, noise, 749, torch.tensor([999]), ZERO), noise)


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_trains_from_no_signal(name, backbone, make_cond, latents):
    zeros = make_cond(1).map(torch.zeros_like)
    made = rollout(
        backbone.teacher, latents(2), make_cond(2), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=GUIDANCE
    )
    assert made.is_finite
    config = dataclasses.replace(SMALL, method=name, discriminator_noise="all", lcm_timesteps=4)
    grid = {"num_slots": 4, "fine_steps": 3, "delta": 1, "guidance_scale": GUIDANCE, "uncond": zeros}
    trainer = Trainer(backbone, config, **grid)
    assert all(not progress.skipped for progress in train(trainer, made))

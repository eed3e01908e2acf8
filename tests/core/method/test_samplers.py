"""Samplers of other few-step methods, step for step beside diffusers' schedulers."""

import diffusers
import pytest
import torch

from rapm_cli.core.method.samplers import SAMPLERS, sample_student

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def scheduler_of(sampler, num_slots, **more):
    made = getattr(diffusers, f"{sampler.scheduler}Scheduler")(**SCHEDULE, **sampler.settings, **more)
    made.set_timesteps(num_slots)
    return made


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("num_slots", [1, 2, 4, 8])
def test_euler_is_diffusers_euler(backbone, make_cond, latents, num_slots):
    sampler, z, cond = SAMPLERS["euler"], latents(2), make_cond(2)
    scheduler = scheduler_of(sampler, num_slots)
    assert scheduler.timesteps.tolist() == sampler.times(num_slots, 1000)
    theirs = z * scheduler.init_noise_sigma
    with torch.no_grad():
        for t in scheduler.timesteps:
            scaled = scheduler.scale_model_input(theirs, t)
            theirs = scheduler.step(backbone.student(scaled, int(t), cond), t, theirs).prev_sample
    mine = sample_student(backbone.student, z, cond, num_slots, sampler)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("num_slots", [1, 4, 8])
def test_tcd_is_diffusers_tcd(backbone, make_cond, latents, monkeypatch, num_slots):
    sampler, z, cond = SAMPLERS["tcd"], latents(2), make_cond(2)
    scheduler = scheduler_of(sampler, num_slots, set_alpha_to_one=False)
    assert scheduler.timesteps.tolist() == sampler.times(num_slots, 1000)
    drawn = torch.randn(num_slots, *z.shape, generator=torch.Generator().manual_seed(5))
    fresh, again = iter(drawn), iter(drawn)
    monkeypatch.setattr("rapm_cli.core.method.samplers._new_noise", lambda like, seeds, s: next(fresh))
    monkeypatch.setattr("diffusers.schedulers.scheduling_tcd.randn_tensor", lambda *args, **kwargs: next(again))
    mine, theirs = sample_student(backbone.student, z, cond, num_slots, sampler)[0], z
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(backbone.student(theirs, int(t), cond), t, theirs).prev_sample
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)

import itertools

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.network.schedule import (
    CLEAN,
    NoiseSchedule,
    clean_estimate,
    ddim_step,
    fine_grid,
    noise_estimate,
    noise_forward,
    slot_edges,
)
from tests.conftest import authors_scheduler
from tests.messages import naming


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 10, 20, 40, 50])
def test_ddim_is_diffusers_wherever_diffusers_can_express_the_grid(steps, schedule):
    scheduler = authors_scheduler()
    scheduler.set_timesteps(steps)
    edges = slot_edges(steps)[::-1]
    assert scheduler.timesteps.tolist() == edges[:-1]
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for t, s in itertools.pairwise(edges):
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(t))
        torch.testing.assert_close(
            ddim_step(z, noise, t, s, schedule), scheduler.step(noise, t, z).prev_sample, rtol=1e-5, atol=1e-5
        )
        z = ddim_step(z, noise, t, s, schedule)


def test_the_schedule_is_diffusers_schedule(schedule):
    torch.testing.assert_close(schedule.alphas_cumprod, authors_scheduler().alphas_cumprod, rtol=0, atol=0)


@pytest.mark.parametrize("num_slots", [1, 2, 4, 8])
@pytest.mark.parametrize("fine_steps", [2, 7, 10, 13])
def test_every_edge_is_on_the_fine_grid(num_slots, fine_steps):
    grid = fine_grid(num_slots, fine_steps)
    assert grid[::fine_steps] == slot_edges(num_slots)[::-1]
    assert grid == sorted(set(grid), reverse=True)


def test_a_step_nowhere_changes_nothing(schedule):
    z, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(ddim_step(z, noise, 500, 500, schedule), z)


def test_two_steps_with_constant_noise_are_one(schedule):
    z, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    there = ddim_step(ddim_step(z, noise, 999, 613, schedule), noise, 613, 249, schedule)
    torch.testing.assert_close(there, ddim_step(z, noise, 999, 249, schedule))


def test_the_last_slot_ends_on_the_first_alpha_and_keeps_noise(schedule):
    noise = torch.ones(1, 1, 1, 1)
    z = (1 - schedule.alphas_cumprod[249]).sqrt() * noise  # x0 is zero
    left = ddim_step(z, noise, 249, CLEAN, schedule)
    assert left.item() == pytest.approx((1 - schedule.alphas_cumprod[0].item()) ** 0.5, rel=1e-4)
    assert left.item() == pytest.approx(0.029, abs=2e-4)


def test_halving_steps_doubles_the_error_on_gaussian_data(schedule):
    """For N(0, 1) data the best noise estimate is sqrt(1 - a) z, and the exact path is constant."""
    errors = []
    for steps in (10, 20, 40, 100):
        z = torch.full((1, 1, 1, 1), 1.7, dtype=torch.float64)
        edges = slot_edges(steps)[::-1]
        for t, s in itertools.pairwise(edges):
            z = ddim_step(z, (1 - schedule.alphas_cumprod[t].double()).sqrt() * z, t, s, schedule)
        errors.append(abs(z.item() - 1.7))
    ratios = [coarse / fine for coarse, fine in itertools.pairwise(errors)]
    assert ratios[0] == pytest.approx(2, rel=0.25)
    assert ratios[1] == pytest.approx(2, rel=0.25)
    assert ratios[2] == pytest.approx(2.5, rel=0.25)


def test_noise_forward_keeps_the_marginal_variance(schedule):
    """A latent of signal power a at s has signal power a_t at t, and unit total variance stays unit."""
    z, noise = torch.randn(2, 4, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([300, 400, 450, 499])
    moved = noise_forward(z, noise, 249, t, schedule)
    assert moved.var(dim=(1, 2, 3)).tolist() == pytest.approx([1] * 4, abs=0.05)
    ratio = schedule.alphas_cumprod[t] / schedule.alphas_cumprod[249]
    correlation = (moved * z).mean(dim=(1, 2, 3)) / z.square().mean(dim=(1, 2, 3))
    assert correlation.tolist() == pytest.approx(ratio.sqrt().tolist(), abs=0.05)


def test_noise_forward_to_its_own_time_changes_nothing(schedule):
    z, noise = torch.randn(2, 1, 4, 8, 8)
    torch.testing.assert_close(noise_forward(z, noise, 249, torch.tensor([249]), schedule), z)


def test_a_velocity_is_turned_into_noise_and_a_clean_latent():
    schedule = NoiseSchedule.scaled_linear(prediction_type="v_prediction")
    x0, noise = torch.randn(2, 1, 4, 8, 8, dtype=torch.float64)
    a = schedule.alphas_cumprod[600].double()
    z, v = a.sqrt() * x0 + (1 - a).sqrt() * noise, a.sqrt() * noise - (1 - a).sqrt() * x0
    torch.testing.assert_close(noise_estimate(z, v, 600, schedule), noise)
    torch.testing.assert_close(clean_estimate(z, v, 600, schedule), x0)


def test_a_step_towards_noise_is_our_bug(schedule):
    z = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match=naming(499)):
        ddim_step(z, z, 249, 499, schedule)


@pytest.mark.parametrize("num_slots", [0, 3, 6, 7, 9, 1000])
def test_step_counts_that_other_samplers_would_miss_are_refused_with_the_list(num_slots):
    with pytest.raises(ConfigError) as refused:
        slot_edges(num_slots)
    assert "1, 2, 4, 5, 8, 10, 20, 25, 40, 50, 100" in refused.value.remedy


def test_more_teacher_steps_than_timesteps_are_refused():
    with pytest.raises(ConfigError, match=naming(251)):
        fine_grid(4, 251)

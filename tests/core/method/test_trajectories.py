from dataclasses import replace

import torch

from rapm_cli.core.method.trajectories import rollout


def test_the_first_fine_step_of_every_slot_is_the_stored_point_ahead(backbone, make_cond, trajectories):
    from rapm_cli.core.method.trajectories import guided_prediction
    from rapm_cli.core.network.schedule import ddim_step, fine_grid

    grid, zeros = fine_grid(4, 3), make_cond(1).map(torch.zeros_like)
    for n in range(4):
        k = (3 - n) * 3
        z = trajectories.z_teacher[:, n + 1]
        with torch.no_grad():
            noise = guided_prediction(backbone.teacher, z, grid[k], trajectories.cond, zeros, 2.0)
        ahead = ddim_step(z, noise, grid[k], grid[k + 1], backbone.schedule)
        torch.testing.assert_close(ahead, trajectories.z_ahead[:, n])


def test_delta_moves_the_point_ahead_along_the_same_path(backbone, make_cond, latents):
    def ahead(delta):
        zeros = make_cond(1).map(torch.zeros_like)
        made = rollout(
            backbone.teacher,
            latents(1),
            make_cond(1),
            zeros,
            num_slots=2,
            fine_steps=4,
            delta=delta,
            guidance_scale=2.0,
        )
        return made.z_teacher, made.z_ahead

    z_teacher, one = ahead(1)
    again, three = ahead(3)
    torch.testing.assert_close(z_teacher, again)
    assert not torch.allclose(one, three, atol=1e-3)


def test_guidance_of_one_is_the_condition_alone_and_guidance_is_linear(backbone, make_cond, latents):
    from rapm_cli.core.method.trajectories import guided_prediction

    z, cond = latents(1), make_cond(1)
    zeros = replace(cond.map(torch.zeros_like), time_ids=cond.time_ids)  # the sizes are those of the images
    with torch.no_grad():
        with_, without = backbone.teacher(z, 500, cond), backbone.teacher(z, 500, zeros)
        torch.testing.assert_close(guided_prediction(backbone.teacher, z, 500, cond, zeros, 1.0), with_)
        expected = without + 3 * (with_ - without)
        torch.testing.assert_close(
            guided_prediction(backbone.teacher, z, 500, cond, zeros, 3.0), expected, rtol=1e-4, atol=1e-5
        )

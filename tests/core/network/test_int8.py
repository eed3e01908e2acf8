import weakref

import pytest
import torch
from torch import nn

from rapm_cli.bases.plans import PLANS
from rapm_cli.core.method.targets import student_step
from rapm_cli.core.method.trajectories import walk_teacher
from rapm_cli.core.network import int8
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.int8 import Int8Linear, quantise
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.distill.memory_plan import apply_plan
from tests.conftest import tiny_unet


def layers():
    torch.manual_seed(0)
    linear = nn.Linear(64, 48).requires_grad_(False)
    return linear, Int8Linear(linear), torch.randn(10, 64)


def test_a_rounded_layer_is_within_a_hundredth_and_keeps_its_bias():
    linear, rounded, x = layers()
    exact = linear(x)
    assert (rounded(x) - exact).norm() / exact.norm() < 0.01
    assert rounded.weight.dtype == torch.int8
    assert rounded.weight.abs().amax(dim=1).eq(127).all()  # each output's largest weight has the largest number
    torch.testing.assert_close(rounded(torch.zeros(1, 64)), linear.bias[None])


def test_the_gradient_is_that_of_the_layer_it_stands_for():
    linear, rounded, x = layers()
    whole = rounded.weight.float() * rounded.scale
    assert (whole - linear.weight).abs().max() <= rounded.scale.max() / 2 * 1.001
    x.requires_grad_()
    gradient = torch.randn(10, 48)
    (mine,) = torch.autograd.grad(rounded(x), x, gradient)
    torch.testing.assert_close(mine, gradient @ whole)


def test_no_layer_outlives_its_rounding(monkeypatch):
    network = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(5)))
    alive = weakref.WeakSet(module for module in network.modules() if type(module) is nn.Linear)
    counts = []

    class Counted(Int8Linear):
        def __init__(self, linear):
            counts.append(len(alive))
            super().__init__(linear)

    monkeypatch.setattr(int8, "Int8Linear", Counted)
    quantise(network)
    assert counts == [5, 4, 3, 2, 1]


@pytest.mark.slow
def test_a_lora_trains_on_a_rounded_network(schedule, make_cond, latents):
    backbone = Backbone(tiny_unet(), schedule)
    linears = sum(type(module) is nn.Linear for module in backbone.unet.modules())
    assert quantise(backbone.unet) == linears > 0
    attach_lora(backbone, rank=2, alpha=2.0)
    lora = lora_weights(backbone)
    optimizer, z = torch.optim.Adam([lora.flat], lr=3e-3), latents(2)
    losses = []
    for _ in range(8):
        loss = student_step(backbone.student, z, 999, 749, make_cond(2)).square().mean()
        lora.set_gradients(torch.autograd.grad(loss, lora.parameters))
        optimizer.step()
        lora.sync()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    ups = [m for name, m in lora.masters.items() if "to_q.lora_B" in name]
    assert all(up.abs().max() > 0 for up in ups)


def test_a_rounded_base_is_no_teacher_any_more(schedule, make_cond, latents):
    backbone, cond = Backbone(tiny_unet(), schedule), make_cond(1)
    assert len(list(walk_teacher(backbone.teacher, latents(1), [999, 499], cond, cond, 1.0))) == 2
    apply_plan(PLANS["8"], backbone)
    with pytest.raises(ValueError, match="rounded"):
        next(walk_teacher(backbone.teacher, latents(1), [999, 499], cond, cond, 1.0))

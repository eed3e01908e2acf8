import pytest
import torch

from rapm_cli.core.method.losses import hinge_discriminator_mean, hinge_student_mean, pseudo_huber_mean


def test_pseudo_huber_is_absolute_far_away_and_squared_near_zero():
    zero = torch.zeros(3, 4, dtype=torch.float64)
    assert pseudo_huber_mean(zero, zero).item() == 0
    assert pseudo_huber_mean(zero + 2, zero).item() == pytest.approx(2 - 1e-3, abs=1e-6)
    near = pseudo_huber_mean(zero + 1e-5, zero).item()
    assert near == pytest.approx((1e-5) ** 2 / (2 * 1e-3), rel=1e-3)


def test_pseudo_huber_gradient_is_bounded_by_one():
    a = torch.linspace(-5, 5, 101, dtype=torch.float64, requires_grad=True)
    pseudo_huber_mean(a, torch.zeros(101, dtype=torch.float64)).backward()
    assert a.grad.abs().max() * 101 <= 1


def test_hinge_is_two_where_the_discriminator_cannot_tell():
    logits = [torch.full((2, 1, 4, 4), 0.3), torch.full((2, 1, 2, 2), -0.9)]
    assert hinge_discriminator_mean(logits, logits).item() == pytest.approx(2)


def test_hinge_leaves_a_convinced_discriminator_alone():
    sure = torch.full((1, 1, 4, 4), 1.5, requires_grad=True)
    hinge_student_mean([sure]).backward()
    assert sure.grad.abs().max() == 0
    unsure = torch.full((1, 1, 4, 4), 0.5, requires_grad=True)
    hinge_student_mean([unsure]).backward()
    torch.testing.assert_close(unsure.grad, torch.full((1, 1, 4, 4), -1 / 16))


def test_taps_count_alike_whatever_their_size():
    large, small = torch.full((1, 1, 32, 32), 1.0), torch.full((1, 1, 2, 2), 0.0)
    assert hinge_student_mean([large, small]).item() == pytest.approx(0.5)

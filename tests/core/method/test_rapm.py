import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method import adversarial as adversarial_module
from rapm_cli.core.method import rapm as rapm_module
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.targets import absolute_target, relative_target, student_step
from tests.messages import naming


def test_targets_carry_no_gradient_and_the_student_does(backbone, trainer_of, trajectories):
    trainer = trainer_of()
    relative = relative_target(
        backbone.student,
        trajectories.z_ahead[:, 2],
        trainer.method.context.ahead[2],
        trainer.method.context.edges[2],
        trajectories.cond,
    )
    z_student = student_step(backbone.student, trajectories.z_teacher[:, 3], 749, 499, trajectories.cond)
    assert not relative.requires_grad
    assert not absolute_target(trajectories.z_teacher, 2).requires_grad
    assert z_student.requires_grad


def test_the_points_ahead_are_where_the_trajectories_say(trainer_of):
    from rapm_cli.core.network.schedule import fine_grid

    grid = fine_grid(4, 3)
    assert trainer_of().method.context.ahead == [grid[10], grid[7], grid[4], grid[1]]


@pytest.mark.slow
def test_weights_switch_slots_off(trainer_of, trajectories, monkeypatch):
    trainer, starts = trainer_of(slot_weights=(0.0, 0.0, 0.0, 1.0)), []

    def step(*args):
        starts.append(torch.cat([value.flatten() for value in trainer.lora.state().values()]))
        return student_step(*args)

    monkeypatch.setattr("rapm_cli.core.method.rapm.student_step", step)
    trainer.train_step(trajectories[0:2], 0)
    step(trainer.backbone.student, trajectories.z_teacher[0:2, 1], 249, -1, trajectories[0:2].cond)
    assert [torch.equal(starts[0], later) for later in starts[1:]] == [True, True, True, False]


@pytest.mark.slow
def test_without_a_relative_loss_the_relative_target_is_not_computed(trainer_of, trajectories, monkeypatch):
    trainer = trainer_of(relative_weight=0.0, discriminators="absolute")
    monkeypatch.setattr("rapm_cli.core.method.rapm.relative_target", lambda *args: pytest.fail("computed"))
    report = trainer.train_step(trajectories[0:2], 0)
    assert [set(slot.distance) for slot in report] == [{"absolute"}] * 4
    assert set(report[0].discriminator) == {"absolute"}


@pytest.mark.slow
def test_starting_from_the_teacher_makes_slots_independent(trainer_of, trajectories, monkeypatch):
    starts = []
    real = student_step
    monkeypatch.setattr(
        "rapm_cli.core.method.rapm.student_step", lambda b, z, t, s, c: (starts.append((t, z)), real(b, z, t, s, c))[1]
    )
    batch = trajectories[0:2]
    trainer_of(start_from="teacher").train_step(batch, 0)
    for (_, z), n in zip(starts, (4, 3, 2, 1), strict=True):
        torch.testing.assert_close(z, batch.z_teacher[:, n], rtol=0, atol=0)


@pytest.fixture
def walk(monkeypatch):
    """Where the student's steps in training start and end, as they come."""
    starts, ends = [], []
    real = student_step

    def spy(student, z, t, s, cond):
        starts.append(z)
        ends.append(real(student, z, t, s, cond))
        return ends[-1]

    monkeypatch.setattr("rapm_cli.core.method.rapm.student_step", spy)
    return starts, ends


@pytest.mark.slow
def test_mixed_starts_are_each_the_students_or_the_teachers(trainer_of, trajectories, walk):
    starts, ends = walk
    batch, trainer = trajectories[0:2], trainer_of(start_from="mixed")
    chosen = []
    for iteration in range(4):
        starts.clear(), ends.clear()
        trainer.train_step(batch, iteration)
        for start, mine, n in zip(starts[1:], ends, (3, 2, 1), strict=False):
            for row in range(2):
                is_mine = torch.equal(start[row], mine[row])
                assert is_mine != torch.equal(start[row], batch.z_teacher[row, n])
                chosen.append(is_mine)
    assert 4 < sum(chosen) < 20  # of 24


@pytest.mark.slow
def test_a_student_starts_a_slot_where_it_ended_the_last_one(trainer_of, trajectories, walk):
    starts, ends = walk
    trainer_of().train_step(trajectories[0:2], 0)
    for end, start in zip(ends, starts[1:], strict=False):
        torch.testing.assert_close(start, end.detach(), rtol=0, atol=0)
        assert not start.requires_grad


def test_a_slots_loss_is_the_methods_formula(trainer_of, trajectories, monkeypatch):
    """distance to both targets + lambda (adversarial of both), each with its weight, times the slot's weight."""
    from rapm_cli.core.method.losses import hinge_student_mean

    weights = {"relative_weight": 0.7, "absolute_weight": 1.3, "adversarial_weight": 0.4}
    trainer = trainer_of(**weights, slot_weights=(2.0, 1.0, 0.5, 3.0), learning_rate=1e-9)
    seen, parts, times = [], {"distance": [], "adversarial": []}, []
    real_gradients = trainer.student.backward
    monkeypatch.setattr(trainer.student, "backward", lambda loss: (seen.append(loss.item()), real_gradients(loss))[1])
    real_distance, real_noise = pseudo_huber_mean, adversarial_module.noise_forward

    def distance(a, b):
        parts["distance"].append(real_distance(a, b))
        return parts["distance"][-1]

    def adversarial(fake):
        parts["adversarial"].append(hinge_student_mean(fake))
        return parts["adversarial"][-1]

    def noise(z, noise, t_from, t, schedule):
        times.append((t_from, t))
        return real_noise(z, noise, t_from, t, schedule)

    monkeypatch.setattr(rapm_module, "pseudo_huber_mean", distance)
    monkeypatch.setattr(adversarial_module, "hinge_student_mean", adversarial)
    monkeypatch.setattr(adversarial_module, "noise_forward", noise)
    trainer.train_step(trajectories[0:2], 0)
    for k, slot_weight in enumerate(trainer.config.slot_weights):
        absolute, relative = (value.item() for value in parts["distance"][2 * k : 2 * k + 2])
        scored = sum(value.item() for value in parts["adversarial"][2 * k : 2 * k + 2])
        assert seen[k] == pytest.approx(slot_weight * (0.7 * relative + 1.3 * absolute + 0.4 * scored), rel=1e-5)
    for k, (t_from, t) in enumerate(times):  # the student's latents, then the targets, in every slot
        n = 3 - k // 2
        assert t_from == trainer.method.context.edges[n]
        assert all(
            max(trainer.method.context.edges[n], 0) <= time < trainer.method.context.edges[n + 1] for time in t.tolist()
        )


def test_slot_weights_must_fit_the_slots(trainer_of):
    with pytest.raises(ConfigError, match=naming(2, 4)):
        trainer_of(slot_weights=(1.0, 1.0))

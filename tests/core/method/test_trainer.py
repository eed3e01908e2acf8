import dataclasses

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method import adversarial as adversarial_module
from rapm_cli.core.method import rapm as rapm_module
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.discriminators import DISCRIMINATORS, Discriminator
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.method.targets import absolute_target, relative_target, student_step
from rapm_cli.core.method.trainer import Trainer, batch_indices, train
from rapm_cli.core.method.trajectories import rollout
from tests.conftest import tiny_unet
from tests.messages import naming

SMALL = TrainConfig(rank=2, alpha=2.0, iterations=3, batch_size=2, learning_rate=1e-3, discriminator_learning_rate=1e-3)


@pytest.fixture
def trajectories(backbone, make_cond, latents):
    zeros = make_cond(1).map(torch.zeros_like)
    return rollout(
        backbone.teacher, latents(4), make_cond(4), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.fixture
def trainer_of(backbone):
    def make(**changes):
        return Trainer(backbone, dataclasses.replace(SMALL, **changes), num_slots=4, fine_steps=3, delta=1)

    return make


def weights_after(config, trajectories, schedule):
    from rapm_cli.core.network.backbone import Backbone

    trainer = Trainer(Backbone(tiny_unet(), schedule), config, num_slots=4, fine_steps=3, delta=1)
    progress = list(train(trainer, trajectories))
    return trainer.lora.state(), progress, trainer


def test_the_first_fine_step_of_every_slot_is_the_stored_point_ahead(backbone, make_cond, trajectories):
    from rapm_cli.core.method.trajectories import guided_noise
    from rapm_cli.core.network.schedule import ddim_step, fine_grid

    grid, zeros = fine_grid(4, 3), make_cond(1).map(torch.zeros_like)
    for n in range(4):
        k = (3 - n) * 3
        z = trajectories.z_teacher[:, n + 1]
        with torch.no_grad():
            noise = guided_noise(backbone.teacher, z, grid[k], trajectories.cond, zeros, 2.0)
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
    from rapm_cli.core.method.trajectories import guided_noise

    z, cond, zeros = latents(1), make_cond(1), make_cond(1).map(torch.zeros_like)
    with torch.no_grad():
        with_, without = backbone.teacher(z, 500, cond), backbone.teacher(z, 500, zeros)
        torch.testing.assert_close(guided_noise(backbone.teacher, z, 500, cond, zeros, 1.0), with_)
        expected = without + 3 * (with_ - without)
        torch.testing.assert_close(
            guided_noise(backbone.teacher, z, 500, cond, zeros, 3.0), expected, rtol=1e-4, atol=1e-5
        )


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


def test_gradients_reach_every_b_at_first_and_every_a_after_one_update(trainer_of, trajectories):
    trainer = trainer_of(weight_decay=0.0)
    named = [(n, p) for n, p in trainer.backbone.unet.named_parameters() if ".lora_" in n]
    before = {n: p.detach().clone() for n, p in named}
    z = student_step(trainer.backbone.student, trajectories.z_teacher[:, 4], 999, 749, trajectories.cond)
    first = torch.autograd.grad(z.square().mean(), trainer.lora.parameters)
    for name, gradient in zip(trainer.lora.masters, first, strict=True):
        assert (gradient.abs().max() > 0) == ("lora_B" in name), name
    trainer.train_step(trajectories[0:2], 0)
    for name, parameter in named:
        assert not torch.equal(parameter, before[name]), name


def test_the_frozen_network_never_changes(trainer_of, trajectories):
    trainer = trainer_of()
    frozen = {n: p.detach().clone() for n, p in trainer.backbone.unet.named_parameters() if ".lora_" not in n}
    trainer.train_step(trajectories[0:2], 0)
    for name, parameter in trainer.backbone.unet.named_parameters():
        if name in frozen:
            assert parameter.grad is None
            assert not parameter.requires_grad
            torch.testing.assert_close(parameter, frozen[name], rtol=0, atol=0)


@pytest.mark.slow
def test_a_run_is_a_function_of_its_seed(trajectories, schedule):
    short = dataclasses.replace(SMALL, iterations=2)
    torch.manual_seed(1)
    one, progress_one, _ = weights_after(short, trajectories, schedule)
    torch.manual_seed(2)
    two, progress_two, _ = weights_after(short, trajectories, schedule)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert progress_one == progress_two
    other, _, _ = weights_after(dataclasses.replace(short, seed=1), trajectories, schedule)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_checkpointing_trains_the_same_student(trajectories, schedule):
    plain, _, _ = weights_after(SMALL, trajectories, schedule)
    checkpointed, _, _ = weights_after(dataclasses.replace(SMALL, gradient_checkpointing=True), trajectories, schedule)
    for name in plain:
        torch.testing.assert_close(plain[name], checkpointed[name], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_twenty_iterations_bring_the_student_nearer_to_its_teacher(trajectories, schedule):
    config = dataclasses.replace(SMALL, iterations=20, batch_size=4, learning_rate=5e-3, warmup=2)
    _, _, trainer = weights_after(config, trajectories, schedule)

    def errors():
        walked = sample_student(trainer.backbone.student, trajectories.z_teacher[:, 4], trajectories.cond, 4)
        return [float((mine - trajectories.z_teacher[:, n]).norm()) for n, mine in enumerate(walked[:-1])]

    after = errors()
    for parameter in trainer.lora.masters.values():
        parameter.data.zero_()
    before = errors()
    assert all(late < early for late, early in zip(after, before, strict=True))
    assert after[0] < 0.9 * before[0]


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


def test_the_gradient_of_a_batch_is_the_mean_of_its_rows(trainer_of, trajectories):
    trainer = trainer_of()

    def gradients(batch):
        z = student_step(trainer.backbone.student, batch.z_teacher[:, 4], 999, 749, batch.cond)
        return torch.autograd.grad(pseudo_huber_mean(z, batch.z_teacher[:, 3]), trainer.lora.parameters)

    trainer.train_step(trajectories[0:2], 0)  # so that no gradient is zero
    both, one, two = (gradients(trajectories[rows]) for rows in (slice(0, 2), slice(0, 1), slice(1, 2)))
    for whole, first, second in zip(both, one, two, strict=True):
        torch.testing.assert_close(whole, (first + second) / 2, rtol=1e-3, atol=1e-6)


def test_a_target_that_is_not_finite_makes_no_update_and_ends_the_walk(trainer_of, trajectories):
    trainer = trainer_of()
    before = flat(trainer.state())
    trajectories.z_teacher[0, 3, 0, 0, 0] = float("nan")
    report = trainer.train_step(trajectories[0:2], 7)
    assert [slot.skipped for slot in report] == ["target"]
    after = flat(trainer.state())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.any() for name, value in after.items() if name not in before)  # no optimizer has begun


def test_a_loss_that_is_infinite_makes_no_update_even_where_its_gradient_is_finite(trainer_of, trajectories):
    """Far from its target the pseudo-Huber distance overflows, and its gradient there is exactly 0."""
    trainer = trainer_of()
    before = flat(trainer.state())
    trajectories.z_teacher[0, 3] = 1e20
    report = trainer.train_step(trajectories[0:2], 0)
    assert [slot.skipped for slot in report] == ["loss"]
    after = flat(trainer.state())
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(value.any() for name, value in after.items() if name not in before)  # no optimizer has begun


@pytest.mark.slow
@pytest.mark.parametrize("late", [float("inf"), float("nan")])
def test_slots_before_the_one_that_is_not_finite_are_trained(trainer_of, trajectories, late):
    trainer = trainer_of()
    trajectories.z_teacher[:, 0] = late
    report = trainer.train_step(trajectories[0:2], 0)
    assert [slot.skipped for slot in report] == ["", "", "", "target"]
    assert all(value.isfinite().all() for value in flat(trainer.state()).values())


@pytest.mark.slow
def test_a_discriminator_that_is_not_finite_is_not_updated_and_the_student_walks_on(
    trainer_of, trajectories, monkeypatch
):
    trainer = trainer_of()
    before = flat(trainer.state())
    monkeypatch.setattr(adversarial_module, "hinge_discriminator_mean", lambda real, fake: real[0].sum() * float("nan"))
    report = trainer.train_step(trajectories[0:2], 0)
    assert [slot.skipped for slot in report] == ["discriminator"] * 4
    for name, value in flat(trainer.state()).items():
        if name.startswith("discriminators/"):
            assert torch.equal(value, before[name])
        assert value.isfinite().all()
    assert any(not torch.equal(before[name], value) for name, value in flat(trainer.state()).items() if name in before)


def flat(parts):
    return {f"{part}/{name}": value.clone() for part, named in parts.items() for name, value in named.items()}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"discriminators": "none"}, {"ema_decay": 0.9}])
def test_a_trainer_goes_on_from_its_state_as_if_never_stopped(trajectories, schedule, changes):
    from rapm_cli.core.network.backbone import Backbone

    config = dataclasses.replace(SMALL, iterations=4, **changes)

    def fresh():
        return Trainer(Backbone(tiny_unet(), schedule), config, num_slots=4, fine_steps=3, delta=1)

    whole, first, second = fresh(), fresh(), fresh()
    everything = list(train(whole, trajectories))
    begun = [progress for _, progress in zip(range(2), train(first, trajectories), strict=False)]
    second.load_state({part: {n: v.clone() for n, v in named.items()} for part, named in first.state().items()})
    rest = list(train(second, trajectories, 2))
    assert begun + rest == everything
    wanted, found = flat(whole.state()), flat(second.state())
    assert wanted.keys() == found.keys()
    assert all(torch.equal(wanted[name], found[name]) for name in wanted)


def test_another_trainers_state_is_refused(trainer_of):
    trainer = trainer_of()
    state = trainer.state()
    wrong = state["student"] | {"mid_block.more": torch.zeros(1)}
    with pytest.raises(ValueError, match="keys differ"):
        trainer.load_state(state | {"student": wrong})
    wrong = {name: value[..., :1] for name, value in state["discriminators"].items()}
    with pytest.raises(ValueError, match="shape"):
        trainer.load_state(state | {"discriminators": wrong})
    with pytest.raises(ValueError, match="keys differ"):
        trainer.load_state(state | {"student-optimizer": {"exp_avg.nobody": torch.zeros(1)}})


def test_a_slots_loss_is_the_methods_formula(trainer_of, trajectories, monkeypatch):
    """distance to both targets + lambda (adversarial of both), each with its weight, times the slot's weight."""
    from rapm_cli.core.method.losses import hinge_student_mean

    weights = {"relative_weight": 0.7, "absolute_weight": 1.3, "adversarial_weight": 0.4}
    trainer = trainer_of(**weights, slot_weights=(2.0, 1.0, 0.5, 3.0), learning_rate=1e-9)
    seen, parts, times = [], {"distance": [], "adversarial": []}, []
    real_gradients = trainer.student.backward
    monkeypatch.setattr(trainer.student, "backward", lambda loss: (seen.append(loss.item()), real_gradients(loss)))
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
        judged = sum(value.item() for value in parts["adversarial"][2 * k : 2 * k + 2])
        assert seen[k] == pytest.approx(slot_weight * (0.7 * relative + 1.3 * absolute + 0.4 * judged), rel=1e-5)
    for k, (t_from, t) in enumerate(times):  # the student's latents, then the targets, in every slot
        n = 3 - k // 2
        assert t_from == trainer.method.context.edges[n]
        assert all(
            max(trainer.method.context.edges[n], 0) <= time < trainer.method.context.edges[n + 1] for time in t.tolist()
        )


def test_the_order_visits_every_trajectory_once_in_each_epoch():
    seen = torch.cat([batch_indices(0, iteration, 3, 10) for iteration in range(10)])
    for epoch in range(3):
        assert sorted(seen[10 * epoch : 10 * (epoch + 1)].tolist()) == list(range(10))
    assert seen[:10].tolist() != seen[10:20].tolist()


def test_the_rate_warms_up_and_falls_to_a_tenth(trainer_of):
    trainer = trainer_of(iterations=100, warmup=10, learning_rate=1.0 - 1e-9)
    rates = [trainer.learning_rate(k) for k in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(1)
    assert rates[100] == pytest.approx(0.1)
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("final", [0, 0.01, 1])
def test_the_rate_falls_to_the_share_that_is_asked_for(trainer_of, final):
    trainer = trainer_of(iterations=100, warmup=0, learning_rate=0.5, min_lr_ratio=final)
    assert trainer.learning_rate(0) == pytest.approx(0.5)
    assert trainer.learning_rate(50) == pytest.approx(0.5 * (1 + final) / 2)
    assert trainer.learning_rate(100) == pytest.approx(0.5 * final)


@pytest.mark.slow
def test_the_average_of_the_students_is_what_is_exported(trainer_of, trajectories):
    trainer = trainer_of(ema_decay=0.25, iterations=6)
    expected = trainer.lora.state()
    for progress in train(trainer, trajectories):
        kept = min(0.25, (1 + progress.iteration) / (10 + progress.iteration))
        expected = {name: kept * expected[name] + (1 - kept) * now for name, now in trainer.lora.state().items()}
    last = trainer.lora.state()
    trainer.finalize()
    torch.testing.assert_close(trainer.lora.state(), expected)
    assert any(not torch.equal(last[name], expected[name]) for name in last)


@pytest.mark.slow
def test_without_an_average_the_last_student_is_exported(trainer_of, trajectories):
    trainer = trainer_of()
    list(train(trainer, trajectories))
    last = trainer.lora.state()
    trainer.finalize()
    assert all(torch.equal(last[name], now) for name, now in trainer.lora.state().items())


@pytest.mark.parametrize(
    ("init", "deviation"), [("gaussian", lambda a: 1 / 64), ("kaiming", lambda a: (3 * a) ** -0.5)]
)
def test_the_lora_begins_as_it_is_told(trainer_of, init, deviation):
    state = trainer_of(rank=64, lora_init=init).lora.state()
    for name, value in state.items():
        if "lora_A" in name:
            wanted = deviation(value[0].numel())  # the inputs of one row
            assert value.std() == pytest.approx(wanted, rel=0.2), name
        else:
            assert not value.any(), name


@pytest.mark.slow
@pytest.mark.parametrize("times", ["edge", "slot", "all"])
def test_discriminators_look_at_the_times_that_they_are_told(trainer_of, trajectories, monkeypatch, times):
    seen = []

    def features(teacher, z, t, cond):
        seen.append((t.tolist(), z))
        return [z]

    kind = dataclasses.replace(DISCRIMINATORS["latent"], features=features)
    trainer = trainer_of(discriminator_noise=times)
    adversarial = trainer.method.adversarial
    monkeypatch.setattr(adversarial, "kind", kind)
    edges = adversarial.context.edges
    z = trajectories.z_teacher[:, 1]
    for iteration in range(60):
        adversarial.features({"fake": z}, 1, trajectories.cond, iteration)
    drawn = [t for row, _ in seen for t in row]
    highest = {"edge": edges[1] + 1, "slot": edges[2], "all": edges[4]}[times]
    assert min(drawn) >= edges[1]
    assert 0.9 * (highest - edges[1]) < max(drawn) - edges[1] + 1 <= highest - edges[1]
    assert all(torch.equal(noised, z) for _, noised in seen) == (times == "edge")


def test_slot_weights_must_fit_the_slots(trainer_of):
    with pytest.raises(ConfigError, match=naming(2, 4)):
        trainer_of(slot_weights=(1.0, 1.0))


@pytest.mark.parametrize("name", DISCRIMINATORS.names())
def test_every_discriminator_keeps_the_contract(name, backbone, make_cond, latents):
    kind = DISCRIMINATORS[name]
    torch.manual_seed(0)
    discriminator, again = (Discriminator(kind, backbone, 5, "relative") for _ in range(2))
    other = Discriminator(kind, backbone, 5, "absolute")
    z = latents(2).requires_grad_()
    features = kind.features(backbone.teacher, z, torch.tensor([100, 200]), make_cond(2))
    logits = discriminator(features)
    assert [f.shape[1] for f in features] == kind.channels(backbone)
    assert all(out.shape[:2] == (2, 1) for out in logits)
    sum(out.sum() for out in logits).backward()
    assert z.grad is not None
    assert z.grad.abs().max() > 0
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(torch.equal(a, b) for a, b in zip(discriminator.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(discriminator.parameters(), other.parameters(), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", DISCRIMINATORS.names())
def test_every_discriminator_learns_to_tell_two_positions_apart(name, backbone, trainer_of, trajectories):
    trainer = trainer_of(discriminator=name, discriminator_learning_rate=1e-2, learning_rate=1e-9)
    first = trainer.train_step(trajectories[0:4], 0)
    for _ in range(25):
        last = trainer.train_step(trajectories[0:4], 0)  # the same noise each time
    assert last[0].discriminator["absolute"] < 0.8 * first[0].discriminator["absolute"]

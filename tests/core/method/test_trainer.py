import dataclasses

import pytest
import torch

from rapm_cli.core.method import adversarial as adversarial_module
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.method.targets import student_step
from rapm_cli.core.method.trainer import Trainer, batch_indices, train
from tests.conftest import tiny_unet
from tests.core.method.conftest import SMALL


def weights_after(config, trajectories, schedule):
    from rapm_cli.core.network.backbone import Backbone

    trainer = Trainer(Backbone(tiny_unet(), schedule), config, num_slots=4, fine_steps=3, delta=1)
    progress = list(train(trainer, trajectories))
    return trainer.lora.state(), progress, trainer


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

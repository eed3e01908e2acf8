"""RAPM and its peers: one contract for all, and what each of them claims."""

import dataclasses

import pytest
import torch

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.method import METHODS
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.method.lcm import consistency
from rapm_cli.core.method.losses import pseudo_huber_mean
from rapm_cli.core.method.samplers import DDIM, LCM, RENOISED, lcm_sampler, sample_student
from rapm_cli.core.method.trainer import Trainer, check_fit, check_options, train
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone, Denoiser, Passes
from tests.conftest import tiny_unet
from tests.messages import naming

SMALL = TrainConfig(
    rank=2, iterations=4, batch_size=2, learning_rate=1e-3, discriminator_learning_rate=1e-3, warmup=0, fake_updates=2
)
GUIDANCE = 2.0
every_method = pytest.mark.parametrize("name", METHODS.names())


def config_of(name, **changes):
    heeds_fakes = "fake_updates" in METHODS[name].options
    return dataclasses.replace(SMALL, method=name, fake_updates=2 if heeds_fakes else 5, **changes)


@pytest.fixture
def trainer_of(schedule, make_cond):
    def make(name, guidance_scale=GUIDANCE, **changes):
        uncond = make_cond(1).map(torch.zeros_like)
        return Trainer(
            Backbone(tiny_unet(), schedule),
            config_of(name, **changes),
            num_slots=4,
            fine_steps=3,
            delta=1,
            guidance_scale=guidance_scale,
            uncond=uncond,
        )

    return make


@pytest.fixture
def trajectories(backbone, make_cond, latents):
    zeros = make_cond(1).map(torch.zeros_like)
    return rollout(
        backbone.teacher, latents(4), make_cond(4), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=2.0
    )


def everything(trainer):
    return {f"{part}/{name}": value for part, named in trainer.state().items() for name, value in named.items()}


@pytest.mark.slow
@every_method
def test_a_method_trains_every_weight_that_it_has_and_leaves_the_base(name, trainer_of, trajectories):
    trainer = trainer_of(name, iterations=3)
    frozen = {n: p.clone() for n, p in trainer.backbone.unet.named_parameters() if ".lora_" not in n}
    before = everything(trainer)
    progress = list(train(trainer, trajectories))
    assert all(not each.skipped for each in progress)
    after = everything(trainer)
    assert [key for key, value in before.items() if torch.equal(after[key], value) and "optimizer" not in key] == []
    assert all(torch.equal(p, frozen[n]) for n, p in trainer.backbone.unet.named_parameters() if n in frozen)


@pytest.mark.slow
def test_dmd2_that_is_stopped_and_resumed_ends_with_the_same_bits(trainer_of, trajectories):
    """No method keeps more: a second LoRA, discriminators and whose turn it is. RAPM's own fact is in test_trainer."""
    whole, first, second = (trainer_of("dmd2") for _ in range(3))
    list(train(whole, trajectories))
    for progress in train(first, trajectories):
        if progress.iteration == 1:
            break
    second.load_state(first.state())
    list(train(second, trajectories, 2))
    expected = everything(whole)
    assert expected.keys() == everything(second).keys()
    assert all(torch.equal(value, expected[key]) for key, value in everything(second).items())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS.names() if name != "dmd2"])
def test_a_target_that_is_not_finite_makes_no_update_of_anything(name, trainer_of, trajectories):
    trainer = trainer_of(name)
    before = everything(trainer)
    broken = dataclasses.replace(trajectories, z_teacher=trajectories.z_teacher * float("nan"))
    report = trainer.train_step(broken[0:2], 0)
    assert report[0].skipped == "target"
    after = everything(trainer)
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.slow
def test_a_real_picture_that_is_not_finite_spares_the_student_of_dmd2(trainer_of, trajectories):
    trainer = trainer_of("dmd2")
    before = everything(trainer)
    broken = dataclasses.replace(trajectories, z_teacher=trajectories.z_teacher * float("nan"))
    report = trainer.train_step(broken[0:2], 0)
    assert [slot.skipped for slot in report] == ["discriminator", "target"]  # the student's turn, and the one after
    after = everything(trainer)
    for key, value in before.items():
        is_trained = key.startswith("student/") and "lora_B" in key  # the first gradient of A is zero
        assert torch.equal(after[key], value) != is_trained, key


@pytest.mark.slow
def test_an_estimate_counts_the_weights_that_a_method_trains(make_cond, trainer_of):
    """DMD2 has all that a method can have: a second LoRA, discriminators and a student that waits for its turn."""
    from rapm_cli.bases.estimate import META, estimate_training
    from rapm_cli.core.network.schedule import NoiseSchedule

    with META:
        backbone = Backbone(tiny_unet(), NoiseSchedule.scaled_linear())
    cond = make_cond(1).map(lambda part: part.to(META))
    teacher = TeacherConfig(base="tiny", guidance_scale=GUIDANCE)
    made = estimate_training(backbone, config_of("dmd2"), teacher, cond, (4, 8, 8))
    assert made.trained == sum(optimizer.weights.flat.numel() for optimizer in trainer_of("dmd2").optimizers.values())
    master, moments = 4 * made.trained, 2 * 4 * made.trained
    assert made.peak_bytes > sum(p.nbytes for p in tiny_unet().parameters()) + master + moments


# Of a picture and slot: (whole, half) passes. KD has one update of four steps. DMD2's are a matter of chance.
COUNTS = {"rapm": (2, 3), "pcm": (4, 2), "lcm": (4, 0), "kd": (1, 0)}


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_the_passes_of_an_iteration_are_counted(name, trainer_of, trajectories):
    progress = next(iter(train(trainer_of(name), trajectories)))
    whole, half = COUNTS[name]
    assert progress.passes == Passes(2 * 4 * whole, 2 * 4 * half)


def test_a_setting_that_a_method_does_not_heed_is_refused():
    check_options(["rank", "relative_weight", "delta"], "rapm")
    check_options(["rank", "adversarial_weight"], "pcm")
    for name, method in (
        ("relative_weight", "kd"),
        ("delta", "pcm"),
        ("discriminator", "lcm"),
        ("fake_updates", "rapm"),
    ):
        with pytest.raises(ConfigError, match=naming(f"--{name.replace('_', '-')}", method)):
            check_options(["rank", name], method)
    with pytest.raises(ConfigError, match=naming(50, 100)):
        check_fit(TrainConfig(method="lcm"), 100)
    with pytest.raises(ConfigError, match=naming("pmc")) as caught:
        check_fit(TrainConfig(method="pmc"), 4)
    assert "pcm" in caught.value.remedy


@pytest.mark.parametrize("name", ["pcm", "lcm"])
def test_on_a_straight_path_all_points_lead_to_the_same_end(name, trainer_of, trajectories, monkeypatch):
    """Where the network always predicts one noise, the teacher's step changes nothing of where the student arrives."""
    trainer = trainer_of(name, **({"discriminators": "none"} if name == "pcm" else {}))
    noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3)).requires_grad_()
    monkeypatch.setattr(Denoiser, "__call__", lambda self, z, t, cond: noise.repeat(len(z) // 2, 1, 1, 1))
    slot = trainer.method.student_loss(trajectories[0:2], 2, trajectories.z_teacher[0:2, 3], 1)
    size = trajectories.z_teacher[0:2].abs().mean()
    assert slot.metrics.distance["consistency"] < 1e-3 * size


def test_the_consistency_function_is_diffusers_and_keeps_a_clean_latent(trainer_of, trajectories):
    from diffusers import LCMScheduler

    student, z = trainer_of("lcm").backbone.student, trajectories.z_teacher[0:2, 0]
    kept = consistency(student, z, torch.zeros(2, dtype=torch.long), trajectories.cond[0:2])
    torch.testing.assert_close(kept, z)
    scheduler = LCMScheduler()
    t = torch.tensor([19, 999])
    with torch.no_grad():
        noise = student(z, t, trajectories.cond[0:2])
        mine = consistency(student, z, t, trajectories.cond[0:2])
    for k in range(2):
        c_skip, c_out = scheduler.get_scalings_for_boundary_condition_discrete(t[k])
        a = student.schedule.alphas_cumprod[t[k]]
        clean = (z[k] - (1 - a).sqrt() * noise[k]) / a.sqrt()
        torch.testing.assert_close(mine[k], c_skip * z[k] + c_out * clean)


def test_a_peers_network_is_asked_at_the_times_of_its_pictures(trainer_of, trajectories):
    """A batch of two with two times equals each picture alone with its own."""
    teacher, cond, z = trainer_of("lcm").backbone.teacher, trajectories.cond[0:2], trajectories.z_teacher[0:2, 2]
    with torch.no_grad():
        both = teacher(z, torch.tensor([100, 800]), cond)
        alone = [teacher(z[k : k + 1], t, cond[k : k + 1]) for k, t in enumerate((100, 800))]
    torch.testing.assert_close(both, torch.cat(alone), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_kd_regresses_the_students_whole_walk_to_the_teachers_end(trainer_of, trajectories):
    trainer = trainer_of("kd")
    list(train(trainer, trajectories))  # so that the student is not the teacher
    batch = trajectories[0:2]
    slot = trainer.method.student_loss(batch, 0, batch.z_teacher[:, 4], 0)
    drawn = sample_student(trainer.backbone.student, batch.z_teacher[:, 4], batch.cond, 4)[0]
    expected = pseudo_huber_mean(drawn, batch.z_teacher[:, 0])
    torch.testing.assert_close(slot.loss.detach(), expected, rtol=1e-5, atol=1e-7)
    assert slot.loss.requires_grad


@pytest.mark.slow
def test_matching_moves_a_picture_by_the_difference_of_the_scores(trainer_of, trajectories):
    trainer, cond = trainer_of("dmd2", learning_rate=0.05), trajectories.cond[0:2]
    method, fake_score, schedule = trainer.method, trainer.backbone.fake_score, trainer.backbone.schedule
    for iteration in range(2):  # so that the fake score is not the teacher
        trainer._run_slot(trajectories[0:2], 3, trajectories.z_teacher[0:2, 4], iteration)
    drawn = trajectories.z_teacher[0:2, 0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(method._matching_loss(drawn, cond, 5, 1), drawn)
    z, t, _ = method._noised(drawn.detach(), (20, 981), 5, 1, "matching")
    a = schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
    with torch.no_grad():
        fake = (z - (1 - a).sqrt() * fake_score(z, t, cond)) / a.sqrt()
        real = (z - (1 - a).sqrt() * method.context.teacher_prediction(z, t, cond)) / a.sqrt()
    scale = (drawn - real).abs().mean(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(gradient * drawn.numel(), ((fake - real) / scale).detach(), rtol=1e-4, atol=1e-4)
    assert (fake - real).abs().max() > 1e-3


@pytest.mark.slow
def test_matching_is_at_rest_where_the_fake_score_is_the_teacher(trainer_of, trajectories):
    method = trainer_of("dmd2", guidance_scale=1.0).method  # a fresh fake score is the unguided teacher
    loss = method._matching_loss(trajectories.z_teacher[0:2, 0], trajectories.cond[0:2], 0, 0)
    assert float(loss) < 1e-10


@pytest.mark.slow
def test_the_student_of_dmd2_takes_one_turn_in_so_many(trainer_of, trajectories):
    trainer = trainer_of("dmd2")
    batch, changed = trajectories[0:2], []
    for n in (3, 2, 1, 0):
        before = {part: {k: v.clone() for k, v in named.items()} for part, named in trainer.state().items()}
        trainer._run_slot(batch, n, batch.z_teacher[:, 4], 0)
        after = trainer.state()
        changed.append(
            tuple(
                any(not torch.equal(after[part][k], v) for k, v in before[part].items())
                for part in ("student", "fake-score")
            )
        )
    assert changed == [(True, True), (False, True), (True, True), (False, True)]


@pytest.mark.slow
def test_a_second_lora_changes_no_other_role(trainer_of, trajectories):
    trainer = trainer_of("dmd2")
    list(train(trainer, trajectories))
    backbone, z, cond = trainer.backbone, trajectories.z_teacher[0:2, 2], trajectories.cond[0:2]

    def seen():
        with torch.no_grad():
            return [denoiser(z, 500, cond) for denoiser in (backbone.teacher, backbone.student, backbone.fake_score)]

    before = seen()
    assert len({round(float(value.sum()), 5) for value in before}) == 3
    with torch.no_grad():
        trainer.method.score.weights.flat.add_(0.01)
    after = seen()
    assert [torch.equal(*pair) for pair in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize("num_slots", [1, 2, 4, 5, 8, 10])
def test_the_times_of_every_sampler_are_diffusers(num_slots):
    import diffusers

    for sampler in (DDIM, LCM, lcm_sampler(10), RENOISED):
        kind = getattr(diffusers, f"{sampler.scheduler}Scheduler")
        scheduler = kind(num_train_timesteps=1000, **sampler.settings)
        scheduler.set_timesteps(num_slots)
        assert scheduler.timesteps.tolist() == sampler.times(num_slots, 1000)


@pytest.mark.slow
def test_sampling_with_new_noise_is_diffusers_lcm(trainer_of, trajectories, monkeypatch):
    from diffusers import LCMScheduler

    trainer = trainer_of("lcm")
    list(train(trainer, trajectories))
    backbone, z, cond = trainer.backbone, trajectories.z_teacher[0:2, 4], trajectories.cond[0:2]
    scheduler = LCMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        set_alpha_to_one=False,
        **LCM.settings,
    )
    scheduler.set_timesteps(4)
    drawn = torch.randn(3, *z.shape, generator=torch.Generator().manual_seed(5))
    fresh = iter(drawn)
    monkeypatch.setattr("rapm_cli.core.method.samplers._new_noise", lambda like, seeds, s: next(fresh))
    mine = sample_student(backbone.student, z, cond, 4, LCM)[0]
    again = iter(drawn)
    monkeypatch.setattr("diffusers.schedulers.scheduling_lcm.randn_tensor", lambda *args, **kwargs: next(again))
    theirs = z
    with torch.no_grad():
        for t in scheduler.timesteps:
            theirs = scheduler.step(backbone.student(theirs, int(t), cond), t, theirs).prev_sample
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_new_noise_is_a_function_of_the_first_alone(trainer_of, trajectories):
    student, z, cond = trainer_of("lcm").backbone.student, trajectories.z_teacher[:, 4], trajectories.cond
    together = sample_student(student, z, cond, 4, LCM)[0]
    alone = torch.cat([sample_student(student, z[k : k + 1], cond[k : k + 1], 4, LCM)[0] for k in range(4)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)

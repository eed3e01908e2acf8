"""Memory that runs out: a slot, a batch and a run that go on with less, and a run that cannot."""

import json
import shutil

import pytest
import torch

from rapm_cli.bases.plans import PLANS
from rapm_cli.cli.app import main
from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer, train
from rapm_cli.core.method.trajectories import rollout
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.distill import memory_plan
from rapm_cli.distill import trajectories as phase_one
from rapm_cli.distill.memory_plan import oom_fallback
from tests.conftest import tiny_unet
from tests.messages import names

SHORT = [
    "distill", "--base", "demo", "--trajectories", "4", "--fine-steps", "2", "--iterations", "2", "--rank", "2",
    "--batch-size", "2", "--samples", "0", "--discriminator", "latent", "--quiet",
]  # fmt: skip

# Harder to know than torch.OutOfMemoryError, which is a RuntimeError too.
SHORTAGE = RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


pytestmark = pytest.mark.usefixtures("small_demo")


class Ear:
    def __init__(self):
        self.warnings = []

    def warn(self, line):
        self.warnings.append(line)


def trained(schedule, trajectories, plan, reporter):
    config = TrainConfig(rank=2, iterations=2, batch_size=2, learning_rate=1e-3)
    backbone = Backbone(tiny_unet(), schedule)
    on_oom = oom_fallback(plan, backbone, reporter, recomputes_all=False)
    trainer = Trainer(backbone, config, num_slots=4, fine_steps=3, delta=1, on_oom=on_oom)
    list(train(trainer, trajectories))
    return trainer


@pytest.fixture(scope="module")
def trajectories(schedule, make_cond, latents):
    zeros, backbone = make_cond(1).map(torch.zeros_like), Backbone(tiny_unet(), schedule)
    return rollout(
        backbone.teacher, latents(4), make_cond(4), zeros, num_slots=4, fine_steps=3, delta=1, guidance_scale=2.0
    )


@pytest.fixture(scope="module")
def undisturbed(schedule, trajectories):
    """The LoRA of a training whose memory never runs out."""
    return trained(schedule, trajectories, PLANS["24"], Ear()).lora.state()


@pytest.mark.parametrize("shortage", [torch.OutOfMemoryError("CUDA out of memory"), SHORTAGE])
def test_a_slot_that_runs_out_is_repeated_with_the_next_plan_and_trains_the_same(
    schedule, trajectories, undisturbed, monkeypatch, shortage
):
    real, calls = Trainer._update, []

    def short_of_memory(self, *args):
        calls.append(args)
        if len(calls) == 6:  # as late in a slot as it can be
            raise shortage
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_update", short_of_memory)
    ear = Ear()
    trainer = trained(schedule, trajectories, PLANS["24"], ear)
    assert len(calls) == 2 * 4 + 1
    assert len(ear.warnings) == 1
    assert names(ear.warnings[0], "16 GB", "--vram 16")
    recomputed = {
        name.split(".")[0] for name, m in trainer.backbone.unet.named_modules()
        if getattr(m, "gradient_checkpointing", False)
    }  # fmt: skip
    assert recomputed == {"up_blocks"}
    for name, value in trainer.lora.state().items():
        torch.testing.assert_close(value, undisturbed[name], rtol=1e-4, atol=1e-6)


def test_memory_that_runs_out_in_the_first_update_leaves_both_optimizers_as_they_were(
    schedule, trajectories, undisturbed, monkeypatch
):
    """The discriminators' moments are laid out before the student changes, so that a repeated slot counts once."""
    real, failed = torch.optim.AdamW.step, []

    def short_of_memory(self, *args, **kwargs):
        if self.param_groups[0]["betas"] == (0.0, 0.999) and not failed:
            failed.append(self)
            raise SHORTAGE
        return real(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", short_of_memory)
    ear = Ear()
    repeated = trained(schedule, trajectories, PLANS["24"], ear)
    assert len(failed) == len(ear.warnings) == 1
    steps = [value for name, value in repeated.state()["student-optimizer"].items() if name == "step"]
    assert steps
    assert all(value == 8 for value in steps)  # two iterations of four slots
    for name, value in repeated.lora.state().items():
        torch.testing.assert_close(value, undisturbed[name], rtol=1e-4, atol=1e-6)


def test_moments_that_are_laid_out_in_part_are_laid_out_again(schedule, trajectories, undisturbed, monkeypatch):
    """torch would take a parameter that has a count of steps for one that has its moments."""
    real, made = torch.zeros_like, []

    def short_of_memory(*args, **kwargs):
        made.append(args)
        if len(made) == 4:  # a parameter's second one
            raise SHORTAGE
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros_like", short_of_memory)
    for name, value in trained(schedule, trajectories, PLANS["24"], Ear()).lora.state().items():
        torch.testing.assert_close(value, undisturbed[name], rtol=1e-4, atol=1e-6)
    assert len(made) > 4


def test_relief_never_recomputes_less(schedule):
    config = TrainConfig(rank=2, iterations=2, batch_size=2, gradient_checkpointing=True)
    trainer = Trainer(Backbone(tiny_unet(), schedule), config, num_slots=4, fine_steps=3, delta=1)
    assert not oom_fallback(PLANS["24"], trainer.backbone, Ear(), recomputes_all=True)()
    assert all(getattr(module, "gradient_checkpointing", True) for module in trainer.backbone.unet.modules())


def test_a_plan_that_there_is_none_of_begins_no_run(capsys, home):
    assert main([*SHORT, "--vram", "7"]) == 2
    assert names(capsys.readouterr().err, "--vram", 7, *PLANS)
    assert not list(home.glob("data/runs/*"))


def test_the_last_plan_gives_up_with_the_way_on(monkeypatch, capsys, tmp_path):
    real, calls = Trainer._run_slot, []

    def short_of_memory(self, *args):
        calls.append(args)
        if len(calls) > 4:
            raise SHORTAGE
        return real(self, *args)

    monkeypatch.setattr(Trainer, "_run_slot", short_of_memory)
    folder = tmp_path / "run"
    assert main([*SHORT, "--checkpoint-every", "1", "--vram", "12", "--output", str(folder)]) == 6
    err = capsys.readouterr().err
    assert "error: training is out of memory at iteration 1; 1 iterations are saved" in err
    assert f"rapm distill --resume {folder}" in err
    assert "--vram 8" in err
    monkeypatch.setattr(Trainer, "_run_slot", real)
    assert main(["distill", "--resume", str(folder), "--vram", "12", "--quiet"]) == 0
    assert [json.loads(line)["iteration"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [0, 1]


def test_phase_1_halves_a_batch_that_does_not_fit(monkeypatch, tmp_path):
    real, sizes = phase_one.rollout, []

    def short_of_memory(teacher, noise, *args, **settings):
        sizes.append(len(noise))
        if len(noise) > 1:
            raise SHORTAGE
        return real(teacher, noise, *args, **settings)

    monkeypatch.setattr(phase_one, "rollout", short_of_memory)
    assert main([*SHORT, "--output", str(tmp_path / "run")]) == 0
    assert sizes == [4, 2, 1, 1, 2, 1, 1]


def test_a_run_on_a_rounded_base_stays_on_it_and_its_lora_says_so(rapm, tmp_path, monkeypatch):
    folder, rounded = tmp_path / "run", []
    real = memory_plan.quantise
    monkeypatch.setattr(memory_plan, "quantise", lambda network: rounded.append(real(network)))
    assert rapm(*SHORT, "--vram", "8", "--output", str(folder))[0] == 0
    again = ["distill", "--resume", str(folder), "--iterations"]
    code, _, err = rapm(*again, "4")
    assert code == 0
    assert len(rounded) == 2
    assert "warning" not in err
    assert json.loads(rapm("inspect", str(folder), "--json")[1])["lora"]["recipe"]["training"]["vram"] == "8"
    code, _, err = rapm(*again, "5", "--vram", "12")
    assert code == 0
    assert len(rounded) == 2
    assert names(err, "8-bit", "cpu")


def test_only_resume_takes_a_run_from_a_rounded_base_or_to_one(rapm, home, tmp_path):
    folder, whole, rounded = tmp_path / "run", [*SHORT, "--iterations", "1"], ["--vram", "8"]

    def runs():
        return {path.name for path in home.glob("data/runs/*")}

    def leave_unfinished(name):
        (home / "data" / "runs" / name / "result.json").unlink()

    assert rapm(*whole, *rounded)[0] == 0
    (first,) = runs()
    leave_unfinished(first)
    assert rapm(*whole)[0] == 0
    (second,) = runs() - {first}
    leave_unfinished(second)
    assert rapm(*whole, *rounded)[0] == 0
    assert runs() == {first, second}
    assert (home / "data" / "runs" / first / "result.json").exists()  # and not the newer one
    shutil.copytree(home / "data" / "runs" / first, folder)
    code, _, err = rapm(*whole, "--output", str(folder))
    assert code == 2
    assert names(err, folder, "vram", 8, "auto")

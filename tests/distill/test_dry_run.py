"""The forecast of a distillation."""

import dataclasses
import json

import pytest
import torch

from rapm_cli.bases import BASES
from rapm_cli.bases.plans import PLANS
from rapm_cli.distill import dry_run, synthetic
from rapm_cli.distill.loop import KEPT
from tests.messages import names

SHORT = ["distill", "--base", "demo", "--trajectories", "4", "--fine-steps", "2", "--iterations", "10", "--rank", "2"]
FEWER = ["--iterations", "1", "--samples", "0", "--quiet"]
SMALL = ["--batch-size", "1", "--precision", "fp32", "--device", "cpu", "--discriminator", "latent"]


@pytest.fixture(scope="module")
def counted():
    """What both phases of the tiny base compute, once it has been counted."""
    return []


@pytest.fixture
def quick(tiny, counted, monkeypatch):
    """The tiny base, counted once for all tests and not tried."""
    real = dry_run._count_costs

    def count_once(*args):
        if not counted:
            counted.append(real(*args))
        return counted[0]

    monkeypatch.setattr(dry_run, "_count_costs", count_once)
    monkeypatch.setattr(dry_run, "PATIENCE_SECONDS", 0.0)


def test_a_dry_run_loads_and_writes_nothing_and_scales_what_it_timed(rapm, home, small_demo, monkeypatch):
    base = BASES["demo"]
    monkeypatch.setattr(
        type(base), "locate", property(lambda self: pytest.fail("weights were looked for")), raising=False
    )
    code, out, _ = rapm(*SHORT, *SMALL, "--dry-run", "--json")
    assert code == 0
    assert not home.exists()
    made = json.loads(out)
    assert made["plan"]["vram"] == "24"
    assert made["dry_run"]
    assert not made["is_rough"]
    assert made["seconds"]["training"] > made["seconds"]["trajectories"] > 0
    assert made["disk_bytes"]["commits"] % (4 * 3 * (2 * KEPT + 1)) == 0


def test_the_forecast_of_stored_trajectories_is_their_size(rapm, home, small_demo, monkeypatch):
    monkeypatch.setattr(dry_run, "PATIENCE_SECONDS", 0.0)
    code, out, _ = rapm(*SHORT, *SMALL, "--dry-run", "--json")
    assert code == 0
    predicted = json.loads(out)["disk_bytes"]["trajectories"]
    assert rapm(*SHORT, *SMALL, *FEWER)[0] == 0
    stored = sum(path.stat().st_size for path in home.glob("cache/trajectories/**/*.safetensors"))
    assert predicted == pytest.approx(stored, rel=0.02)


def test_where_a_trial_would_take_minutes_hours_are_scaled_and_called_rough(rapm, quick, monkeypatch):
    monkeypatch.setattr(dry_run, "matmul_rate", lambda device, dtype: 1e9)
    monkeypatch.setattr(dry_run, "time_iteration", lambda *args: pytest.fail("it tries"))
    code, out, _ = rapm(*SHORT, *SMALL, "--dry-run")
    assert code == 0
    assert names(out, "training", "rough")
    _, out, _ = rapm(*SHORT, *SMALL, "--dry-run", "--json")
    _, twice, _ = rapm(*SHORT, *SMALL, "--iterations", "20", "--dry-run", "--json")
    once, twice = json.loads(out), json.loads(twice)
    assert once["is_rough"]
    assert twice["seconds"]["training"] == pytest.approx(2 * once["seconds"]["training"])
    assert twice["seconds"]["trajectories"] == pytest.approx(once["seconds"]["trajectories"])


@pytest.mark.parametrize("processes", ["1", "2"])
def test_a_dry_run_says_that_it_foresees_one_process_of_several(rapm, quick, monkeypatch, processes):
    monkeypatch.setenv("WORLD_SIZE", processes)
    code, out, _ = rapm(*SHORT, *SMALL, "--dry-run")
    assert code == 0
    assert names(out, "processes", 2) == (processes == "2")


def test_a_dry_run_shows_the_settings_that_a_run_would_use_and_no_others(rapm, quick):
    code, out, _ = rapm(*SHORT, *SMALL, "--dry-run")
    assert code == 0
    assert names(out, "teacher", "fine-steps 2", "trajectories 4", "guidance 2.0")
    assert names(out, "student", "rank 2", "iterations 10", "learning-rate 0.002", "warmup 3")
    assert "lcm-timesteps" not in out


def test_a_dry_run_says_where_a_machine_is_not_one_for_the_run():
    hours = {"trajectories": 1632.0 * 3600, "training": 31_012.6 * 3600}
    made = dry_run.Forecast(PLANS["24"], True, hours, 28 * 2**30, {}, "cpu", 64 * 2**30)
    (slow,) = made.warnings()
    assert names(slow, "1,360 days", "cpu")
    (large,) = dataclasses.replace(made, seconds={"training": 3600.0}, memory_bytes=24 * 2**30).warnings()
    assert names(large, "28.0 GiB", "24.0 GiB")
    assert not list(dataclasses.replace(made, seconds={"training": 3600.0}).warnings())


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--iterations", "3"), ("--warmup", 3)),
        ((), ()),
        (("--checkpoint-every", "11"), ("--checkpoint-every", 11)),
        (("--preview-every", "11"), ("--preview-every", 11)),
        (("--batch-size", "5"), ("--batch-size", 5, 4)),
    ],
)
def test_values_that_are_hardly_meant_are_warned_of(rapm, quick, argv, named):
    code, _, err = rapm(*SHORT, *SMALL, "--dry-run", *argv)
    assert code == 0
    assert ("warning" in err) == bool(named)
    assert names(err, "warning:", *named) == bool(named)


def test_a_dry_run_refuses_what_a_run_refuses(rapm):
    assert rapm(*SHORT, "--dry-run", "--batch-size", "0")[0] == 2
    code, _, err = rapm(*SHORT, "--dry-run", "--vram", "10")
    assert code == 2
    assert names(err, "--vram", "10", *PLANS)
    code, _, err = rapm("distill", "--resume", "--dry-run")
    assert code == 2
    assert names(err, "--resume")


def test_a_trial_of_a_walk_that_ended_early_counts_for_all_slots(monkeypatch):
    from rapm_cli.bases.stopwatch import Timed

    settings = type("S", (), {"teacher": type("T", (), {"num_slots": 4})})
    monkeypatch.setattr(synthetic, "timed", lambda work, *args: (work(), Timed(1.0, 7))[1])
    assert synthetic._timed_walk(lambda: 1, settings, torch.device("cpu"), 1) == Timed(4.0, 7)

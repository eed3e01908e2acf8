"""Trajectories are the same bits whichever of them are missing, and whatever is read beside them."""

import shutil
from types import SimpleNamespace

import pytest
import torch

from rapm_cli.bases import BASES, LoadedBase
from rapm_cli.cli.console import Output
from rapm_cli.core.common import progress
from rapm_cli.core.method.trajectories import Trajectories
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.distill import trajectories as module
from rapm_cli.distill.resolve_run import settings_for
from rapm_cli.distill.trajectories import collect_trajectories, trajectory_store
from rapm_cli.runs import signals
from tests.messages import names

OUT, CPU = Output(quiet=True), torch.device("cpu")


def read_only(folder):
    raise AssertionError(f"{folder} is locked, as only who may write there can")


def test_a_complete_store_is_read_without_a_lock_which_another_user_could_not_take(monkeypatch):
    settings = settings_for(BASES["demo"], {"trajectories": 3, "fine_steps": 2, "samples": 0}, None, CPU, OUT)
    store = trajectory_store(settings, 2)
    for rows in store.shards:
        store.write(rows, small_trajectories(len(rows)))
    monkeypatch.setattr(module, "locked", lambda folder, *args, **named: read_only(folder))
    assert len(collect_trajectories(None, settings, 2, is_strict=True, reporter=OUT)) == 3
    shutil.rmtree(store.folder / "000002")
    with pytest.raises(AssertionError):
        collect_trajectories(None, settings, 2, is_strict=True, reporter=OUT)


def small_trajectories(count):
    cond = Conditioning(torch.zeros(count, 5, 8))
    return Trajectories(torch.zeros(count, 5, 4, 2, 2), torch.zeros(count, 4, 4, 2, 2), cond)


def test_a_stop_says_how_long_the_trajectories_still_take(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    pace = progress.Pace()
    assert pace.seconds_left() is None
    pace.begin(40)
    for _ in range(10):
        now[0] += 3
        pace.advance()
    assert pace.seconds_left() == pytest.approx(30 * 3)
    now[0] += 90
    pace.end()
    pace.begin()  # of a unit without parts the one before is the guess
    now[0] += 20
    assert pace.seconds_left() == pytest.approx(120 - 20)
    now[0] += 500
    assert pace.seconds_left() == 0


def test_a_shard_that_is_halved_counts_its_steps_to_the_end(monkeypatch):
    """Two steps of four are made in vain; those of a half count half."""

    def rollout(base, config, cond, rows, on_step):
        for k in range(4):
            if (len(rows), k) == (4, 2):
                raise RuntimeError("CUDA error: out of memory")
            on_step()
        return small_trajectories(len(rows))

    monkeypatch.setattr(module, "_rollout", rollout)
    pace, notes = progress.Pace(), []
    pace.begin(4)
    cond = Conditioning(torch.zeros(4, 5, 8))
    made = module._rollout_in_memory(
        SimpleNamespace(device=CPU), None, cond, range(4), pace=pace, of=4, on_step=notes.append
    )
    assert len(made) == 4
    assert notes == [f"step {k}" for k in ("1/4", "2/4", "2/6", "3/6", "3/6", "4/6", "4/6", "5/6", "5/6", "6/6")]
    assert pace.seconds_left() == 0


def test_the_notice_of_a_stop_names_the_time(monkeypatch):
    monkeypatch.setattr(signals, "_requests", signals._Requests(stop=2))
    with signals.deferred("these 32 trajectories", lambda: 150.0):
        assert names(signals.notice(), "32", "2 min")
    with signals.deferred("these 32 trajectories"):
        assert names(signals.notice(), "32")


def test_a_shard_that_is_made_alone_is_the_one_that_was_made_among_others(monkeypatch):
    given = {"trajectories": 5, "fine_steps": 2, "samples": 0}
    settings = settings_for(BASES["demo"], given, None, CPU, OUT)
    loaded = LoadedBase(BASES["demo"].locate(OUT), CPU, torch.float32)
    whole = collect_trajectories(loaded, settings, 2, is_strict=False, reporter=OUT)[torch.arange(5)]
    folder = trajectory_store(settings, 2).folder
    shutil.rmtree(folder / "000002")
    monkeypatch.setattr(module, "PROMPTS_AHEAD", 2)
    again = collect_trajectories(loaded, settings, 2, is_strict=False, reporter=OUT)[torch.arange(5)]
    for name, value in whole.tensors().items():
        assert torch.equal(value, again.tensors()[name]), name
    shutil.rmtree(folder)
    once_more = collect_trajectories(loaded, settings, 2, is_strict=False, reporter=OUT)[torch.arange(5)]
    assert torch.equal(once_more.z_ahead, whole.z_ahead)
    encoded = loaded.encode([settings.prompts[4]])
    torch.testing.assert_close(whole.cond.tokens[4:], encoded.tokens)

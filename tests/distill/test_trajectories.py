"""Trajectories are the same bits whichever of them are missing, and whatever is read beside them."""

import shutil

import torch

from rapm_cli.bases import BASES, LoadedBase
from rapm_cli.cli.console import Output
from rapm_cli.distill import trajectories as module
from rapm_cli.distill.resolve_run import settings_for
from rapm_cli.distill.trajectories import collect_trajectories, trajectory_store

OUT, CPU = Output(quiet=True), torch.device("cpu")


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

"""Signals that stop or save a job, through the command line."""

import os
import signal

import pytest

from rapm_cli.distill import loop
from rapm_cli.export import plan
from rapm_cli.formats import safetensors_writer
from rapm_cli.runs.run import Run
from tests.messages import names
from tests.resuming import DISTILL, signal_at, state_of, unfinished


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_finishes_the_iteration_commits_and_says_how_to_go_on(rapm, again, monkeypatch, name, code):
    wanted = state_of(again)
    unfinished(again, "00000002", "00000004")
    with monkeypatch.context() as patch:
        signal_at(patch, 0, getattr(signal, name))
        got, _, err = rapm(*DISTILL)
    assert got == code
    assert names(err, "this iteration")
    command = f"rapm distill --resume {again.folder.name}"
    assert names(err.splitlines()[-1], "stopped:", 1, 4, command)
    assert again.checkpoint_folders()[0].name == "00000001"
    got, _, err = rapm(*command.split()[1:])
    assert got == 0
    assert names(err, 1, 4)
    assert state_of(again) == wanted


def test_a_second_signal_leaves_at_once_with_the_last_commit_intact(rapm, again, monkeypatch):
    unfinished(again, "00000004")
    with monkeypatch.context() as patch:
        signal_at(patch, 2, signal.SIGINT, times=2)
        code, _, err = rapm("distill", "--resume")
    assert code == 130
    assert names(err.splitlines()[-1], f"rapm distill --resume {again.folder.name}")
    assert [verdict for *_, verdict in again.verify_all()] == [""] * len(list(again.verify_all()))
    assert again.checkpoint_folders()[0].name == "00000002"
    assert not list(again.folder.rglob(".rapm-*"))


def test_a_signal_in_the_last_iteration_stops_too(rapm, again, monkeypatch):
    wanted = state_of(again)
    unfinished(again, "00000004")
    with monkeypatch.context() as patch:
        signal_at(patch, 3, signal.SIGTERM)
        code, _, err = rapm("distill", "--resume")
    assert code == 143
    assert names(err, 4, "rapm distill --resume")
    assert not again.has_lora
    assert rapm("distill", "--resume")[0] == 0
    assert state_of(again) == wanted


def test_what_nohup_ignores_stays_ignored(rapm, again, monkeypatch):
    unfinished(again, "00000004")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        signal_at(monkeypatch, 2, signal.SIGHUP)
        assert rapm("distill", "--resume")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_sigusr1_commits_and_goes_on(rapm, again, monkeypatch):
    wanted = state_of(again)
    unfinished(again, "00000002", "00000004")
    kept = []
    with monkeypatch.context() as patch:
        signal_at(patch, 0, signal.SIGUSR1)
        real = loop.Checkpoints.save
        patch.setattr(
            loop.Checkpoints, "save", lambda self, made, parent: (kept.append(made), real(self, made, parent))
        )
        assert rapm(*DISTILL)[0] == 0
    assert [(made.iterations, made.is_regular) for made in kept] == [(0, True), (1, False), (2, True), (4, True)]
    assert state_of(again) == wanted


def test_ctrl_c_among_the_trajectories_keeps_those_that_were_made(rapm, home, small_demo, monkeypatch):
    from rapm_cli.distill import trajectories

    real = trajectories._make
    monkeypatch.setattr(trajectories, "_make", lambda *a: (real(*a), os.kill(os.getpid(), signal.SIGINT)))
    code, _, err = rapm(*DISTILL)
    assert code == 130
    assert names(err, 4, "rapm distill --resume")
    monkeypatch.setattr(trajectories, "_make", lambda *a: pytest.fail("made again"))
    assert rapm("distill", "--resume")[0] == 0


@pytest.mark.parametrize("place", ["resolve_run.settings_for", "distill.loaded_base", "distill.collect_trajectories"])
def test_ctrl_c_before_training_says_what_is_saved(rapm, again, monkeypatch, place):
    unfinished(again, "00000004")
    monkeypatch.setattr(f"rapm_cli.distill.{place}", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT))
    code, _, err = rapm("distill", "--resume")
    command = f"rapm distill --resume {again.folder.name}"
    assert code == 130
    assert names(err.splitlines()[-1], "stopped:", 2, 4, command)


@pytest.mark.parametrize(
    "argv", [("m.safetensors",), ("m",), ("m", "--fuse"), ("m.safetensors", "--fuse", "--single-file")], ids=" ".join
)
def test_a_signal_during_an_export_leaves_nothing(rapm, shipped_lora, tmp_path, monkeypatch, argv):
    place = tmp_path / "exports"
    for module in (plan, safetensors_writer):
        monkeypatch.setattr(module, "verify_tensors", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    output, *more = argv
    code, _, err = rapm("export", str(shipped_lora), "--base", "demo", *more, "--output", str(place / output))
    assert code == 143
    assert names(err.splitlines()[-1], "stopped:")
    assert list(place.iterdir()) == []


def test_a_signal_among_pictures_finishes_the_batch_and_counts(rapm, tmp_path, monkeypatch):
    from rapm_cli.generate import generate

    real = generate.save_png
    monkeypatch.setattr(generate, "save_png", lambda *a: (os.kill(os.getpid(), signal.SIGINT), real(*a)))
    code, out, err = rapm(
        *("generate", "a red cube", "--base", "demo", "--seed", "1..3", "--batch-size", "1", "--output", str(tmp_path))
    )
    assert code == 130
    assert names(err.splitlines()[-1], "stopped:", 1, 3)
    assert [str(path) for path in tmp_path.glob("*.png")] == [out.split("  ")[0]]


def test_a_stop_while_samples_are_made_says_how_to_resume(rapm, again, monkeypatch):
    from rapm_cli.evaluate.chunk_cache import ChunkCache

    real = ChunkCache.keep
    monkeypatch.setattr(ChunkCache, "keep", lambda *a: (real(*a), os.kill(os.getpid(), signal.SIGTERM)))
    code, _, err = rapm("distill", "--resume", again.folder.name, "--samples", "8")
    assert code == 143
    again_command = f"rapm distill --resume {again.folder.name}"
    assert names(err.splitlines()[-1], "stopped:", again_command)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a pseudo-terminal")
def test_a_terminal_that_goes_away_costs_nothing(home, small_folder):
    """Closing the window sends SIGHUP, and from then on nothing can be written to it."""
    import pty
    import select
    import sys

    pid, terminal = pty.fork()
    if pid == 0:
        more = ["--iterations", "500", "--checkpoint-every", "400"]
        os.execv(sys.executable, [sys.executable, "-m", "tests.small_demo", str(small_folder), *DISTILL, *more])
    said = b""
    while b" 2/500" not in said:
        assert select.select([terminal], [], [], 120)[0], said
        said += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    (run,) = (Run(folder) for folder in (home / "data" / "runs").iterdir())
    assert int(run.checkpoint_folders()[0].name) >= 2
    assert run.log.read_text().count("\n") == int(run.checkpoint_folders()[0].name)

"""Runs that are stopped and gone on with, through the command line."""

import contextlib
import dataclasses
import errno
import json
import os
import shlex
import shutil
import signal

import pytest

from rapm_cli.core.storage.commit import commit
from rapm_cli.distill import loop
from rapm_cli.export import plan
from rapm_cli.formats import safetensors_writer
from rapm_cli.runs.run import Run
from tests.messages import names

TINY = (
    *("--trajectories", "4", "--fine-steps", "2", "--rank", "1", "--batch-size", "1", "--samples", "0"),
    *("--discriminator", "latent", "--checkpoint-every", "2", "--iterations", "4"),
)
DISTILL = ["distill", "--base", "demo", *TINY]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was not interrupted, in a home of its own."""
    from rapm_cli.cli.app import main

    home = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(home))
        assert main([*DISTILL, "--quiet"]) == 0
    return home


@pytest.fixture
def again(whole, home):
    """The same home, copied: a finished run whose files may be changed."""
    shutil.copytree(whole, home)
    return Run(next((home / "data" / "runs").iterdir()))


def unfinished(run, *commits):
    """As if killed: without its result, its LoRA and some commits."""
    for name in ("result.json", "lora.safetensors", "sheet.png"):
        (run.folder / name).unlink()
    for name in commits:
        shutil.rmtree(run.checkpoints_dir / name)


def state_of(run):
    newest = run.checkpoint_folders()[0]
    files = {path.name: path.read_bytes() for path in newest.iterdir() if path.name != "MANIFEST.json"}
    return files | {name: (run.folder / name).read_bytes() for name in ("lora.safetensors", "metrics.jsonl")}


def signal_at(monkeypatch, iteration, number, times=1):
    """Send this process a signal in the middle of an iteration."""
    real = loop.Training._take

    def take(self, progress):
        if progress.iteration == iteration:
            for _ in range(times):
                os.kill(os.getpid(), number)
        real(self, progress)

    monkeypatch.setattr(loop.Training, "_take", take)


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


def test_ctrl_c_among_the_trajectories_keeps_those_that_were_made(rapm, home, monkeypatch):
    from rapm_cli.distill import trajectories

    real = trajectories._make
    monkeypatch.setattr(trajectories, "_make", lambda *a: (real(*a), os.kill(os.getpid(), signal.SIGINT)))
    code, _, err = rapm(*DISTILL)
    assert code == 130
    assert names(err, 4, "rapm distill --resume")
    monkeypatch.undo()
    monkeypatch.setenv("RAPM_HOME", str(home))
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
def test_a_signal_during_an_export_leaves_nothing(rapm, whole, tmp_path, monkeypatch, argv):
    lora, place = Run(next((whole / "data" / "runs").iterdir())).lora, tmp_path / "exports"
    for module in (plan, safetensors_writer):
        monkeypatch.setattr(module, "verify_tensors", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    output, *more = argv
    code, _, err = rapm("export", str(lora), "--base", "demo", *more, "--output", str(place / output))
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


def test_the_same_command_goes_on_and_a_finished_run_is_left_alone(rapm, again):
    unfinished(again, "00000004")
    code, _, err = rapm(*DISTILL)
    assert code == 0
    assert names(err, again.folder)
    before = state_of(again)
    assert rapm("distill", "--resume", str(again.folder))[0] == 0
    assert state_of(again) == before
    assert rapm("distill", "--resume")[0] == 3  # there is no unfinished one


def test_the_hint_at_the_end_of_a_run_is_a_command_that_works(rapm, again, tmp_path):
    _, out, _ = rapm("distill", "--resume", str(again.folder))
    argv = shlex.split(out.partition("rapm generate ")[2])
    code, out, err = rapm("generate", *argv, "--output", str(tmp_path / "pictures"))
    assert (code, len(out.splitlines())) == (0, 1)
    assert "warning" not in err


def test_another_number_of_iterations_is_another_command(rapm, again):
    """Fewer would end a long schedule early, more would stretch it: either only where the run is named."""
    unfinished(again, "00000004")
    for count in ("1", "5"):
        code, _, err = rapm(*DISTILL[:-1], count)
        assert code == 0
        assert str(again.folder) not in err
    assert not again.has_lora


@pytest.mark.parametrize("leftover", [["lock"], ["lock", "commits"], ["commits", "commits/.rapm-tmp-1-settings-001"]])
def test_a_process_killed_before_its_first_commit_is_in_nobodys_way(rapm, again, tmp_path, leftover):
    unfinished(again, "00000004")
    for place in (tmp_path / "mine", again.folder.parent / "demo-newer"):
        place.mkdir()
        for name in leftover:
            (place / name).touch() if name == "lock" else (place / name).mkdir()
    code, _, err = rapm("distill", "--resume")
    assert (code, names(err, again.folder)) == (0, True), err
    code, _, err = rapm(*DISTILL, "--output", str(tmp_path / "mine"))
    assert code == 0, err
    assert Run(tmp_path / "mine").has_lora


def test_a_finished_runs_damaged_lora_is_named_and_made_again(rapm, again):
    wanted = state_of(again)
    data = again.lora.read_bytes()
    again.lora.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    again_command = f"rapm distill --resume {again.folder.name}"
    exports = [("export", str(place)) for place in (again.folder, again.lora)]
    for argv in (*exports, ("generate", "a red cube"), ("eval", "--samples", "8")):
        code, _, err = rapm(*argv, "--base", "demo") if argv[0] != "export" else rapm(*argv)
        assert code == 3, err
        assert names(err, again.lora.name, "sha256", again_command)
    assert names(rapm("inspect", str(again.folder))[1], again_command)
    assert rapm(*again_command.split()[1:])[0] == 0
    assert state_of(again) == wanted


def test_a_finished_run_without_its_lora_goes_on(rapm, again):
    wanted = state_of(again)
    again.lora.unlink()
    code, _, err = rapm("distill", "--resume")
    assert (code, names(err, again.folder)) == (0, True)
    assert state_of(again) == wanted


def test_more_samples_compare_again(rapm, again):
    wanted = state_of(again)
    code, _, err = rapm("distill", "--resume", again.folder.name, "--samples", "8", "--json")
    assert code == 0, err
    assert again.result()["comparison"]["samples"] == 8
    assert state_of(again) | {"settings.json": b""} == wanted | {"settings.json": b""}


def test_commits_of_other_settings_are_refused_and_not_moved(rapm, again):
    unfinished(again, "00000004")
    for folder in again.checkpoint_folders():
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "MANIFEST.json"}
        shutil.rmtree(folder)
        commit(folder, files, fingerprint="another", about={"rapm": "9.9"})
    before = sorted(again.checkpoints_dir.iterdir())
    code, _, err = rapm("distill", "--resume")
    assert code == 3
    assert names(err, "rapm", "9.9")
    assert sorted(again.checkpoints_dir.iterdir()) == before


def test_a_setting_that_makes_another_run_is_refused_by_name(rapm, again):
    unfinished(again, "00000004")
    for option, value, *named in (
        ("--rank", "3", "rank", 1, 3),
        ("--learning-rate", "1e-4", "learning-rate", 0.002, 0.0001),
        ("--seed", "5", "seed", 0, 5),
        ("--guidance", "3", "guidance", 2.0, 3.0),
    ):
        code, _, err = rapm("distill", "--resume", again.folder.name, option, value)
        assert (code, names(err, *named)) == (2, True), err
    code, _, err = rapm("distill", "--resume", again.folder.name, "--deterministic")
    assert (code, names(err, "deterministic", "off", "on")) == (2, True), err
    code, _, err = rapm("distill", "--resume", again.folder.name, "--rank", "2")
    assert (code, names(err, "rank", 1, 2)) == (2, True), err
    code, _, err = rapm("distill", "--resume", again.folder.name, "--alpha", "2")
    assert (code, names(err, "alpha", 1.0, 2.0)) == (2, True), err
    code, _, err = rapm("distill", "--resume", again.folder.name, "--iterations", "1")
    assert code == 2
    assert names(err, "--iterations 1", 2)
    code, _, err = rapm("distill", "--base", "demo", "--output", str(again.folder), "--rank", "3")
    assert code == 2
    assert names(err, again.folder)


def test_more_iterations_go_on_with_a_finished_run(rapm, again):
    code, _, err = rapm("distill", "--resume", again.folder.name, "--iterations", "5", "--checkpoint-every", "1")
    assert code == 0, err
    assert again.result()["iterations"] == 5
    assert [json.loads(line)["iteration"] for line in again.log.read_text().splitlines()] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("name", ["student.safetensors", "student-optimizer.safetensors", "state.json", "log.jsonl"])
def test_a_damaged_commit_is_named_and_the_one_before_used(rapm, again, name):
    wanted = state_of(again)
    unfinished(again)
    path = again.checkpoints_dir / "00000004" / name
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    code, _, err = rapm("distill", "--resume", "--strict")
    assert code == 3
    assert names(err, name, "sha256")
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, path.parent, name, "sha256", "00000002", 2)
    assert state_of(again) == wanted
    assert len(list((again.folder / "damaged").iterdir())) == 1


def test_a_damaged_shard_is_made_again_alone_and_strict_stops(rapm, again, home):
    wanted = state_of(again)
    unfinished(again)
    path = next((home / "cache" / "trajectories").rglob("*.safetensors"))
    path.write_bytes(bytes(path.stat().st_size))
    code, _, err = rapm("distill", "--resume", "--strict")
    assert code == 3
    assert str(path.parent) in err
    assert rapm("distill", "--resume")[0] == 0
    assert state_of(again) == wanted


def test_settings_are_read_from_another_commit_when_their_own_is_damaged(rapm, again):
    unfinished(again, "00000004")
    path = again.checkpoints_dir / "settings-001" / "settings.json"
    path.write_bytes(path.read_bytes().replace(b"demo", b"dEmo"))
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, "warning:", path.parent, path.name)


def test_a_run_without_any_good_commit_is_refused_with_what_is_wrong(rapm, again):
    unfinished(again, "00000002", "00000004")
    shutil.rmtree(again.checkpoints_dir / "00000000", ignore_errors=True)
    (again.checkpoints_dir / "settings-001" / "MANIFEST.json").unlink()
    code, _, err = rapm("distill", "--resume")
    assert code == 3
    assert names(err, "MANIFEST.json")
    assert len(err.splitlines()) == 2


def test_a_second_process_is_refused_with_the_firsts_pid(rapm, again):
    from rapm_cli.cli.console import Output
    from rapm_cli.runs.lock import locked

    unfinished(again, "00000004")
    with locked(again.folder, Output(quiet=True), "wait"):
        code, _, err = rapm("distill", "--resume")
    assert code == 8
    assert names(err, again.folder, "pid", os.getpid())
    with locked(again.folder, Output(quiet=True), "wait"):
        (again.folder / "lock.json").write_text("[")
        assert rapm("distill", "--resume")[0] == 8
    (again.folder / "lock.json").write_text('{"pid": 1, "host": "gone", "since": "2026-01-01 00:00:00"}')
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, "pid", 1, "gone", "2026-01-01 00:00:00")


def test_a_second_run_waits_for_the_trajectories_that_the_first_makes(rapm, again, home, monkeypatch):
    """Runs with one teacher share them, and another process may be at work on them."""
    from rapm_cli.cli.console import Output
    from rapm_cli.runs import lock, signals
    from rapm_cli.runs.lock import locked

    monkeypatch.setattr(lock, "SILENT_SECONDS", 0)
    (store,) = (home / "cache" / "trajectories").iterdir()
    with contextlib.ExitStack() as held:
        held.enter_context(locked(store, Output(quiet=True), "wait"))
        monkeypatch.setattr(signals, "pause", lambda seconds: held.close())
        code, _, err = rapm(*DISTILL[:-1], "1")
    assert code == 0
    assert names(err, "pid", os.getpid())
    assert names(err, 4, "trajectories")


def test_a_run_goes_on_where_it_was_begun_and_says_where_its_bits_would_change(rapm, again):
    import torch

    from rapm_cli.bases.device import describe_machine
    from rapm_cli.runs.settings import Settings

    unfinished(again, "00000004")
    path = again.checkpoints_dir / "settings-001" / "settings.json"
    stored = Settings.from_bytes(path.read_bytes())
    here = describe_machine(torch.device("cpu"))
    assert (stored.device, stored.machine) == ("cpu", here)
    changed = dataclasses.replace(stored, device="cuda", machine="a GPU, torch 3")
    shutil.rmtree(path.parent)
    commit(path.parent, {path.name: changed.to_bytes()}, fingerprint=stored.fingerprint)
    code, _, err = rapm("distill", "--resume", "--device", "cpu")
    assert code == 0
    assert names(err, "a GPU, torch 3", here)
    newest = Settings.from_bytes((again.settings_folders()[0] / path.name).read_bytes())
    assert (newest.device, newest.machine) == ("cpu", here)


def test_what_is_not_finite_is_skipped_then_gone_back_from_then_stopped(rapm, again, monkeypatch):
    unfinished(again, "00000004")
    monkeypatch.setattr("rapm_cli.core.method.rapm.pseudo_huber_mean", lambda a, b: (a - b).sum() * float("nan"))
    code, _, err = rapm("distill", "--resume", "--iterations", "9")
    assert code == 7
    assert names(err, "loss", 3, 5, 2, 0.5)
    assert names(err, 0.25)
    assert names(err.splitlines()[-1], "loss", 4, 2, "--learning-rate")
    assert names(rapm("inspect", again.folder.name)[1], "state", "diverged", 2)
    assert rapm("distill", "--resume")[0] == 3  # there is no unfinished one
    assert again.checkpoint_folders()[0].name == "00000002"
    assert {path.name for path in (again.folder / "offending").iterdir()} == {"00000002", "00000003", "00000004"}
    lines = [json.loads(line) for line in again.log.read_text().splitlines()]
    assert [line["went_back"]["returns"] for line in lines if "went_back" in line] == [1, 2]
    assert [line["skipped"] for line in lines if "skipped" in line] == ["loss"] * 9


def test_a_network_that_is_not_finite_is_never_committed(rapm, again, monkeypatch):
    from rapm_cli.core.training.optimizer import GuardedAdamW
    from rapm_cli.formats.lora import load_lora

    unfinished(again, "00000004")
    real, updates = GuardedAdamW.update, []

    def update(self, *arguments):
        is_made = real(self, *arguments)
        updates.append(is_made)
        if len(updates) == 8:  # the last of the iteration: four slots, each with the student and its judges
            self.weights.flat.data[0] = float("inf")
        return is_made

    monkeypatch.setattr(GuardedAdamW, "update", update)
    code, _, err = rapm("distill", "--resume")
    assert code == 0, err
    assert names(err, "network", 3, 2, 0.5)
    assert all(value.isfinite().all() for value in load_lora(again.lora).state.values())
    assert [verdict for *_, verdict in again.verify_all()] == [""] * len(list(again.verify_all()))


def test_a_finished_run_keeps_its_result_where_strict_stops(rapm, again):
    path = again.checkpoints_dir / "00000004" / "student.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    result = again.result()
    assert rapm("distill", "--resume", again.folder.name, "--iterations", "6", "--strict")[0] == 3
    assert again.result() == result
    assert not again.is_finished  # more is wanted of it
    assert names(rapm("inspect", again.folder.name)[1], "state", "unfinished", 2)
    assert rapm("distill", "--resume")[0] == 0
    assert again.is_finished


def test_a_run_that_cannot_be_looked_into_is_in_nobodys_way(rapm, again, monkeypatch):
    from rapm_cli.runs import run

    unfinished(again, "00000004")
    (again.folder.parent / "of-another-user").mkdir()
    real = run._changed_at

    def changed_at(folder):
        if folder.name == "of-another-user":
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(run, "_changed_at", changed_at)
    code, _, err = rapm("distill", "--resume")
    assert (code, names(err, again.folder)) == (0, True), err


def test_a_stop_while_samples_are_made_says_how_to_resume(rapm, again, monkeypatch):
    from rapm_cli.evaluate.chunk_cache import ChunkCache

    real = ChunkCache.keep
    monkeypatch.setattr(ChunkCache, "keep", lambda *a: (real(*a), os.kill(os.getpid(), signal.SIGTERM)))
    code, _, err = rapm("distill", "--resume", again.folder.name, "--samples", "8")
    assert code == 143
    again_command = f"rapm distill --resume {again.folder.name}"
    assert names(err.splitlines()[-1], "stopped:", again_command)


def test_samples_that_another_process_kept_meanwhile_are_left_alone(rapm, home, monkeypatch):
    from rapm_cli.evaluate.samples import SampleSet

    command = ("eval", "--base", "demo", "--samples", "8", "--split", "seen", "--metrics", "attributes")
    assert rapm(*command)[0] == 0
    files = [*(home / "cache" / "readings").glob("*/*"), *(home / "cache" / "galleries").glob("*/*/*")]
    before = [path.stat().st_mtime_ns for path in files]
    assert len([path for path in files if path.suffix == ".png"]) == 3 * 8
    for name in ("_is_kept", "_is_intact"):
        monkeypatch.setattr(SampleSet, name, lambda *a: False)
    assert rapm(*command)[0] == 0
    assert [path.stat().st_mtime_ns for path in files] == before


def test_after_the_interval_was_changed_training_goes_back_to_what_was_regular_then(rapm, again, monkeypatch):
    unfinished(again)
    monkeypatch.setattr("rapm_cli.core.method.rapm.pseudo_huber_mean", lambda a, b: (a - b).sum() * float("nan"))
    code, _, err = rapm("distill", "--resume", "--iterations", "9", "--checkpoint-every", "100")
    assert code == 7
    assert names(err, 7, 4, 0.5)


def test_training_goes_on_where_the_offending_trajectories_cannot_be_kept(rapm, again, monkeypatch):
    from rapm_cli.core.method.trainer import Trainer

    unfinished(again, "00000004")
    real = Trainer.train_step

    def step(self, batch, iteration):
        if iteration == 2:
            batch.z_teacher[0, 2] = float("inf")
        return real(self, batch, iteration)

    def full(*arguments, **named):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr(loop, "commit", full)
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, "warning:", "No space left on device")


def test_one_bad_trajectory_is_skipped_and_the_rest_is_trained(rapm, again, monkeypatch):
    from rapm_cli.core.method.trainer import Trainer

    unfinished(again, "00000002", "00000004")
    real = Trainer.train_step

    def step(self, batch, iteration):
        if iteration == 1:
            batch.z_teacher[0, 2] = float("inf")
        return real(self, batch, iteration)

    monkeypatch.setattr(Trainer, "train_step", step)
    code, _, err = rapm(*DISTILL)
    assert code == 0
    assert names(err, "target", 1)
    lines = [json.loads(line) for line in again.log.read_text().splitlines()]
    assert [line.get("skipped", "") for line in lines] == ["", "target", "", ""]


def test_inspect_shows_a_runs_commits_and_whether_they_verify(rapm, again):
    path = again.checkpoints_dir / "00000004" / "log.jsonl"
    path.write_bytes(b"x")
    code, out, err = rapm("inspect", str(again.folder))
    assert code == 3
    assert names(out, "log.jsonl", 1)
    assert names(err, again.folder, "00000004")
    (again.folder / "result.json").unlink()
    err = rapm("inspect", str(again.folder))[2]
    assert names(err, "00000004", f"rapm distill --resume {again.folder.name}")
    facts = json.loads(rapm("inspect", str(again.folder), "--json")[1])
    assert [commit["verifies"] for commit in facts["commits"]] == [True, True, False]
    assert facts["iterations"] == 2
    assert "student.safetensors" in facts["commits"][1]["files"]


def test_room_is_asked_for_before_each_phase(rapm, home, monkeypatch):
    from rapm_cli.core.storage import room

    monkeypatch.setattr(room, "free_bytes", lambda place: 2_000_000)
    code, _, err = rapm(*DISTILL)
    assert code == 5
    assert names(err, "commits")
    monkeypatch.setattr(room, "free_bytes", lambda place: 1_200_000)
    code, _, err = rapm(*DISTILL, "--new", "--seed", "1")
    assert code == 5, err
    assert names(err, 4, "trajectories")


def test_two_runs_of_one_second_have_folders_of_their_own(home, monkeypatch):
    from rapm_cli.runs.run import new_run

    monkeypatch.setattr("time.strftime", lambda *a: "now")
    assert len({new_run("demo", None).folder for _ in range(3)}) == 3


def test_where_no_run_has_a_lora_yet_the_unfinished_one_is_named(rapm, again):
    unfinished(again, "00000004")
    code, _, err = rapm("inspect")
    assert code == 3
    assert names(err, f"rapm distill --resume {again.folder.name}")


def test_a_batch_larger_than_the_trajectories_is_warned_of(rapm, again):
    unfinished(again, "00000004")
    err = rapm("distill", "--resume", again.folder.name, "--batch-size", "5")[2]
    assert names(err, "warning:", "--batch-size", 5, 4, "--trajectories")


def test_resume_and_new_contradict_each_other(rapm):
    assert rapm("distill", "--resume", "--new")[0] == 2
    code, _, err = rapm("distill", "somewhere")
    assert code == 2
    assert "--resume somewhere" in err


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs a pseudo-terminal")
def test_a_terminal_that_goes_away_costs_nothing(home):
    """Closing the window sends SIGHUP, and from then on nothing can be written to it."""
    import pty
    import select
    import sys

    pid, terminal = pty.fork()
    if pid == 0:
        more = ["--iterations", "500", "--checkpoint-every", "400"]
        os.execv(sys.executable, [sys.executable, "-m", "rapm_cli", *DISTILL, *more])
    said = b""
    while b" 2/500" not in said:
        assert select.select([terminal], [], [], 120)[0], said
        said += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 129
    (run,) = (Run(folder) for folder in (home / "data" / "runs").iterdir())
    assert int(run.checkpoint_folders()[0].name) >= 2
    assert run.log.read_text().count("\n") == int(run.checkpoint_folders()[0].name)

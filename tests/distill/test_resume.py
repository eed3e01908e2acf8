"""Runs that are stopped and resumed, through the command line."""

import dataclasses
import json
import shlex
import shutil

from rapm_cli.core.storage.commit import commit
from tests.messages import names
from tests.resuming import DISTILL, state_of, unfinished


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
    assert json.loads(rapm("inspect", again.folder.name, "--json")[1])["verdict"] == again.result()["verdict"] != ""
    assert again.result()["verdict"] in " ".join(rapm("inspect", again.folder.name)[1].split())
    assert state_of(again) | {"settings.json": b""} == wanted | {"settings.json": b""}


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


def test_samples_that_another_process_kept_meanwhile_are_left_alone(rapm, again, home, monkeypatch):
    from rapm_cli.evaluate.samples import SampleSet

    command = ("eval", "--lora", str(again.folder), "--samples", "8", "--split", "seen", "--metrics", "attributes")
    assert rapm(*command)[0] == 0
    files = [*(home / "cache" / "readings").glob("*/*"), *(home / "cache" / "galleries").glob("*/*/*")]
    before = [path.stat().st_mtime_ns for path in files]
    assert len([path for path in files if path.suffix == ".png"]) == 3 * 8
    for name in ("_is_kept", "_is_intact"):
        monkeypatch.setattr(SampleSet, name, lambda *a: False)
    assert rapm(*command)[0] == 0
    assert [path.stat().st_mtime_ns for path in files] == before


def test_a_batch_larger_than_the_trajectories_is_warned_of(rapm, again):
    unfinished(again, "00000004")
    err = rapm("distill", "--resume", again.folder.name, "--batch-size", "5")[2]
    assert names(err, "warning:", "--batch-size", 5, 4, "--trajectories")


def test_resume_and_new_contradict_each_other(rapm):
    assert rapm("distill", "--resume", "--new")[0] == 2
    code, _, err = rapm("distill", "somewhere")
    assert code == 2
    assert "--resume somewhere" in err

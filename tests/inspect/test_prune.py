"""`rapm inspect cache --prune`: what is removed, and what is kept."""

import io
import json
import os
import shutil
from pathlib import Path

import pytest

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.commit import commit
from rapm_cli.core.storage.files import TEMPORARY, temporary_name
from rapm_cli.inspect import prune
from tests.inspect.conftest import PRUNE, contents, held, of_a_gone_process, size_of
from tests.messages import names


def test_what_no_unfinished_run_needs_goes_and_runs_stay(rapm, run, home):
    before, total = contents(home / "data"), size_of(home / "cache")
    code, out, _ = rapm(*PRUNE, "--yes", "--json")
    assert code == 0
    record = json.loads(out)
    assert [entry["kind"] for entry in record["removed"]] == [*["galleries"] * 3, "trajectories", "readings"]
    assert record["bytes"] == total
    assert contents(home / "cache") == {Path("readings/lock"): b""}
    assert contents(home / "data") == before


def test_an_unfinished_run_keeps_its_trajectories_unless_all_may_go_and_makes_them_again(
    rapm, finished, unfinished, store
):
    lora = next(finished.rglob("lora.safetensors")).read_bytes()
    before = contents(store)
    code, out, _ = rapm(*PRUNE, "--yes")
    assert code == 0
    assert names(out, store.name, unfinished.folder)
    assert contents(store) == before
    assert rapm(*PRUNE, "--all", "--yes")[0] == 0
    assert not store.exists()
    assert rapm("distill", "--resume")[0] == 0
    assert unfinished.lora.read_bytes() == lora
    assert contents(store).keys() == before.keys()


def test_a_diverged_run_needs_no_trajectories(rapm, unfinished, store):
    unfinished.mark_diverged("the loss is not finite")
    assert rapm(*PRUNE, "--yes")[0] == 0
    assert not store.exists()


@pytest.mark.parametrize("more", [[], ["--json"], ["--all", "--json"]])
def test_where_nobody_can_be_asked_nothing_is_removed(rapm, run, home, monkeypatch, more):
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))  # no terminal
    before = contents(home)
    code, out, err = rapm(*PRUNE, *more)
    assert code == 2
    assert names(err, "--yes")
    assert bool(out) == (not more)
    assert contents(home) == before


@pytest.mark.parametrize(
    ("answer", "is_gone"), [("y\n", True), ("YES\n", True), ("n\n", False), ("\n", False), ("", False)]
)
def test_a_person_is_asked(rapm, run, store, monkeypatch, answer, is_gone):
    monkeypatch.setattr("rapm_cli.cli.console.is_terminal", lambda: True)
    monkeypatch.setattr("sys.stdin", io.StringIO(answer))
    code, _, err = rapm(*PRUNE)
    assert code == 0
    assert "[y/N]" in err
    assert store.exists() != is_gone


def test_a_store_that_another_process_fills_is_left_and_named(rapm, run, store):
    with held(store) as pid:
        assert json.loads(rapm("inspect", "cache", "--json")[1])["trajectories"][0]["in_use"].startswith(f"pid {pid} ")
        code, out, _ = rapm(*PRUNE, "--all", "--yes")
        assert code == 0
        assert names(out, "pid", pid)
        assert store.exists()
    assert rapm(*PRUNE, "--yes")[0] == 0
    assert not store.exists()


def test_a_lock_that_is_taken_after_the_survey_is_heeded(rapm, run, store, monkeypatch):
    monkeypatch.setattr("rapm_cli.inspect.disk_usage.holder", lambda folder: "")
    with held(store) as pid:
        code, _, err = rapm(*PRUNE, "--yes")
    assert code == 0
    assert names(err, store, "pid", pid)
    assert store.exists()


def test_what_another_process_converts_is_left_and_its_lock_is_ours(rapm, home):
    made = home / "cache" / "converted" / "LORA-0123"
    commit(made, {"lora.safetensors": b"123"}, fingerprint="f")
    size = size_of(made)
    with held(made.parent) as pid:
        code, _, err = rapm(*PRUNE, "--yes")
        assert code == 0
        assert names(err, made, "pid", pid)
        assert made.exists()
    code, out, _ = rapm(*PRUNE, "--yes", "--json")
    assert (json.loads(out)["bytes"], json.loads(out)["left_alone"]) == (size, [])
    assert contents(home) == {Path("cache/converted/lock"): b""}


def test_a_run_at_work_keeps_its_trajectories_even_where_all_may_go(rapm, run, store):
    with held(run.folder):
        assert json.loads(rapm("inspect", "cache", "--json")[1])["runs"][0]["state"] == "at work"
        code, out, _ = rapm(*PRUNE, "--all", "--yes")
    assert code == 0
    assert names(out, run.folder)
    assert store.exists()


def test_links_and_what_is_not_ours_are_left_alone(rapm, run, store, home, tmp_path):
    outside = tmp_path / "outside"
    shutil.copytree(store, outside / "abcdefabcdef")
    (store.parent / "abcdefabcdef").symlink_to(outside / "abcdefabcdef")
    (store.parent / "my notes").mkdir()
    shutil.copytree(store, store.parent / "0123456789ab")
    (store.parent / "0123456789ab" / "thesis.txt").write_text("mine")
    commit(outside / "LORA-0123", {"lora.safetensors": b"123"}, fingerprint="f")
    dead = outside / of_a_gone_process(temporary_name(outside / "LORA-4567").name)
    dead.mkdir()
    (home / "cache" / "converted").symlink_to(outside)
    before = contents(outside)
    code, out, _ = rapm(*PRUNE, "--all", "--yes", "--json")
    assert code == 0
    named = {Path(path).name for path in json.loads(out)["left_alone"]}
    assert named == {"abcdefabcdef", "my notes", "0123456789ab", "converted"}
    assert contents(outside) == before
    assert dead.exists()
    assert {path.name for path in store.parent.iterdir()} == {"abcdefabcdef", "my notes", "0123456789ab"}
    assert (store.parent / "0123456789ab" / "thesis.txt").read_text() == "mine"
    assert names(rapm("inspect", "cache")[1], store.parent / "abcdefabcdef")


def test_a_cache_folder_that_is_a_link_to_another_disk_is_pruned_there(rapm, run, home, tmp_path):
    (home / "cache").rename(tmp_path / "disk")
    (home / "cache").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / of_a_gone_process(temporary_name(home / "note.json").name)).write_text("{")
    (tmp_path / "disk" / "note.json").write_text("{}")
    code, out, _ = rapm(*PRUNE, "--yes", "--json")
    assert code == 0
    assert {entry["kind"] for entry in json.loads(out)["removed"]} == {
        "galleries",
        "trajectories",
        "readings",
        "leftovers",
    }
    assert json.loads(out)["left_alone"] == []
    assert contents(tmp_path / "disk") == {Path("readings/lock"): b"", Path("note.json"): b"{}"}


def test_what_killed_processes_left_goes_and_what_is_being_written_stays(rapm, unfinished, store, tmp_path):
    ours = temporary_name(store / "000000").name
    dead = store / of_a_gone_process(ours)
    alive = store / ours.replace(f"-{os.getpid()}.", f"-{os.getppid()}.")
    for folder in (dead, alive):
        folder.mkdir()
        (folder / "trajectories.safetensors").write_bytes(b"12345")
    link = store.parent / dead.name
    link.symlink_to(tmp_path)
    assert json.loads(rapm("inspect", "cache", "--json")[1])["leftovers"][0]["count"] == 2
    code, out, _ = rapm(*PRUNE, "--yes", "--json")
    assert code == 0
    assert "leftovers" in [entry["kind"] for entry in json.loads(out)["removed"]]
    assert [path for path in store.parent.rglob(f"{TEMPORARY}*") if path.parent != alive] == [alive]
    assert tmp_path.exists()


def test_converted_weights_go_and_a_damaged_store_is_no_trap(rapm, run, store, home):
    commit(home / "cache" / "converted" / "LORA-0123", {"lora.safetensors": b"123"}, fingerprint="f")
    for manifest in store.rglob("MANIFEST.json"):
        manifest.write_text("{")
    facts = json.loads(rapm("inspect", "cache", "--json")[1])
    assert (facts["trajectories"][0]["base"], facts["trajectories"][0]["made"]) == (None, 0)
    assert facts["converted"][0]["path"].endswith("LORA-0123")
    assert rapm("inspect", "cache")[0] == 0
    assert rapm(*PRUNE, "--yes")[0] == 0
    assert contents(home / "cache") == {Path(f"{kind}/lock"): b"" for kind in ("readings", "converted")}


def test_what_cannot_be_removed_is_named(rapm, run, store, monkeypatch):
    remove = prune.remove_commit

    def refuse(path):
        if store in (path, *path.parents):
            raise PermissionError(13, "Permission denied", str(path))
        remove(path)

    monkeypatch.setattr(prune, "remove_commit", refuse)
    code, _, err = rapm(*PRUNE, "--yes")
    assert code == DiskError.exit_code
    assert names(err, "error:", store, "Permission denied")


@pytest.mark.parametrize("argv", [["--prune"], ["cache", "--yes"], ["cache", "--all"], ["run", "--prune", "--yes"]])
def test_options_of_pruning_go_with_nothing_else(rapm, argv):
    code, _, err = rapm("inspect", *argv)
    assert code == 2
    assert names(err, "--prune", "cache")

"""Checkpoints of a run that are damaged or of other settings, through the command line."""

import json
import shutil

import pytest

from rapm_cli.core.storage.commit import commit
from tests.messages import names
from tests.resuming import DISTILL, state_of, unfinished


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
    assert names(err, "checkpoints")
    monkeypatch.setattr(room, "free_bytes", lambda place: 1_200_000)
    code, _, err = rapm(*DISTILL, "--new", "--seed", "1")
    assert code == 5, err
    assert names(err, 4, "trajectories")

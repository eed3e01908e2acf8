import json
import os
import stat
import sys
import time
from pathlib import Path

import pytest
import torch

from rapm_cli.core.common.errors import DamagedError, DiskError, InputError, VerificationError
from rapm_cli.core.storage import files
from rapm_cli.core.storage.commit import MANIFEST, Manifest, commit, committing, read_commit, read_manifest, verify
from rapm_cli.core.storage.files import regular_file, replace_file, sweep
from rapm_cli.formats.safetensors_writer import write_tensors
from tests.messages import naming


def test_a_commit_holds_what_was_written_and_says_what_that_is(tmp_path):
    commit(tmp_path / "a", {"x.bin": b"123", "y.json": b"{}"}, fingerprint="f", parent="p", about={"k": 1})
    made, files = read_commit(tmp_path / "a")
    assert made == verify(tmp_path / "a") == read_manifest(tmp_path / "a")
    assert files == {"x.bin": b"123", "y.json": b"{}"}
    assert (made.name, made.parent, made.about, made.total_bytes) == ("a", "p", {"k": 1}, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_files_have_the_permissions_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        commit(tmp_path / "a", {"x": b"1"}, fingerprint="f")
        replace_file(tmp_path / "b", b"2")
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "a", tmp_path / "a" / "x", tmp_path / "b")]
    assert modes == [0o750, 0o640, 0o640]


def test_a_commit_that_fails_leaves_what_was_there(tmp_path):
    commit(tmp_path / "a", {"x": b"old"}, fingerprint="f")

    def fill():
        with committing(tmp_path / "a", fingerprint="f") as folder:
            (folder / "x").write_bytes(b"new")
            raise OSError("stop")

    with pytest.raises(OSError, match="stop"):
        fill()
    assert read_commit(tmp_path / "a")[1] == {"x": b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        {"files": {"../x": {"bytes": 1, "sha256": "0"}}}, {"files": {"/etc/passwd": {"bytes": 1, "sha256": "0"}}},
        {"files": {"x": 5}}, {"files": {"x": {"bytes": "1", "sha256": "0"}}}, {"files": []}, {"name": 3},
        {"format": 2}, {"about": []}, {"parent": 4},
    ],
)  # fmt: skip
def test_a_manifest_that_somebody_made_up_is_refused_even_where_its_sum_is_right(tmp_path, change):
    commit(tmp_path / "a", {"x": b"1"}, fingerprint="f")
    made = read_manifest(tmp_path / "a")
    try:
        data = Manifest(**(vars(made) | change)).to_bytes()
    except AttributeError:
        data = json.dumps(vars(made) | change).encode()
    (tmp_path / "a" / MANIFEST).write_bytes(data)
    with pytest.raises(DamagedError):
        verify(tmp_path / "a")


def a_dead_process() -> int:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    return dead


def marked(pid: int, name: str, mark: str = files.TEMPORARY, host: str = files._HOST) -> str:
    return f"{mark}{host}-{pid}-{name}"


def test_only_what_dead_processes_left_is_swept(tmp_path):
    dead = a_dead_process()
    kept = {marked(1, "b"), ".rapm-tmp-x", f".tmp-{dead}-c", "kept", marked(dead, "young", host="ffffff")}
    new = files.temporary_name(Path("new")).name.replace(f"-{os.getpid()}.", f"-{dead}.")
    gone = {marked(dead, "a"), marked(dead, "old", host="ffffff"), new}
    for name in kept | gone:
        (tmp_path / name).mkdir()
    (tmp_path / marked(dead, "file")).write_bytes(b"")
    long_ago = time.time() - files.FOREIGN_SECONDS - 1
    os.utime(tmp_path / marked(dead, "old", host="ffffff"), (long_ago, long_ago))
    sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_a_temporary_name_cannot_be_guessed(tmp_path):
    assert len({files.temporary_name(tmp_path / "a") for _ in range(100)}) == 100


WRITERS = {
    "commit": lambda path: commit(path, {"x": b"new"}, fingerprint="f"),
    "file": lambda path: replace_file(path, b"new"),
    "tensors": lambda path: write_tensors(path, {"x": torch.ones(3)}, {}),
    "log": lambda path: files.append_to_file(path, b"new"),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("leads_to", ["file", "folder", "nothing"])
def test_a_planted_link_is_never_followed(tmp_path, monkeypatch, writer, leads_to):
    target, folder = tmp_path / "target", tmp_path / "open to all"
    folder.mkdir()
    link = folder / "planted"
    link.symlink_to(target)
    if leads_to == "file":
        target.write_bytes(b"kept")
    elif leads_to == "folder":
        target.mkdir()
    for module in (files, sys.modules[commit.__module__]):  # as if the name had been guessed
        monkeypatch.setattr(module, "temporary_name", lambda *_: link)
    with pytest.raises((OSError, DiskError)):
        WRITERS[writer](link if writer == "log" else folder / "a")
    assert [path.name for path in folder.iterdir() if path != link] == []
    if leads_to == "file":
        assert target.read_bytes() == b"kept"
    elif leads_to == "folder":
        assert list(target.iterdir()) == []
    else:
        assert not target.exists()


@pytest.mark.parametrize("is_there", [True, False])
def test_what_was_moved_aside_comes_back_only_where_it_is_missed(tmp_path, is_there):
    aside = tmp_path / marked(a_dead_process(), "a", files.ASIDE)
    commit(tmp_path / "a", {"x": b"old"}, fingerprint="f")
    (tmp_path / "a").rename(aside)
    if is_there:
        commit(tmp_path / "a", {"x": b"new"}, fingerprint="f")
    sweep(tmp_path)
    assert read_commit(tmp_path / "a")[1] == {"x": b"new" if is_there else b"old"}
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("is_first", [True, False])
def test_what_does_not_read_back_is_refused_and_what_was_there_is_there_again(tmp_path, monkeypatch, is_first):
    if not is_first:
        commit(tmp_path / "a", {"x": b"old"}, fingerprint="f")
    real = files.sync

    def rot(path):
        real(path)
        if path == tmp_path:
            (tmp_path / "a" / "x").write_bytes(b"rotten")

    monkeypatch.setattr("rapm_cli.core.storage.commit.sync", rot)
    with pytest.raises(VerificationError):
        commit(tmp_path / "a", {"x": b"1"}, fingerprint="f")
    assert [path.name for path in tmp_path.iterdir()] == ([] if is_first else ["a"])
    if not is_first:
        assert read_commit(tmp_path / "a")[1] == {"x": b"old"}


def test_a_commit_of_other_settings_is_refused_where_its_own_are_asked_for(tmp_path):
    commit(tmp_path / "a", {"x": b"1"}, fingerprint="f")
    assert verify(tmp_path / "a", "f").fingerprint == "f"
    with pytest.raises(DamagedError):
        read_commit(tmp_path / "a", "g")


def test_what_is_no_file_is_named_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "no"):
        with pytest.raises(InputError, match=naming(path)):
            regular_file(path, "remedy")


@pytest.mark.parametrize("name", [MANIFEST, "x"])
def test_a_fifo_in_a_files_place_is_damage_and_not_waited_for(tmp_path, name):
    commit(tmp_path / "a", {"x": b"1"}, fingerprint="f")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    for read in (verify, read_commit):
        with pytest.raises(DamagedError, match=naming(name)):
            read(tmp_path / "a")


def test_every_new_folder_on_the_way_is_seen_to_the_disk(tmp_path, monkeypatch):
    synced, real = [], files.sync
    monkeypatch.setattr(files, "sync", lambda path: (synced.append(path), real(path)))
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert set(synced) == {tmp_path, tmp_path / "a", tmp_path / "a" / "b"}
    synced.clear()
    files.make_folder(tmp_path / "a" / "b" / "c")
    assert synced == []

"""Locks of folders and files, within one process: each FileLock is a holder of its own. Then the same by commands."""

import contextlib
import json
import os
import shutil

import pytest

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import LockedError
from rapm_cli.runs.lock import HOLDER, LOCK, locked, try_lock
from tests.messages import names
from tests.resuming import DISTILL, unfinished

OUT = Output(quiet=True)


@pytest.mark.parametrize("remove", [True, False])
def test_a_file_is_locked_once_at_a_time(tmp_path, remove):
    path = tmp_path / "work" / "0.claim"
    with try_lock(path, remove=remove) as first, try_lock(path, remove=remove) as second:
        assert (first, second) == (True, False)
    with try_lock(path, remove=remove) as again:
        assert again
    assert path.exists() == (not remove)


def test_a_locked_folder_names_its_holder_and_refuses_others(tmp_path):
    with locked(tmp_path, OUT, "wait"):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
        with pytest.raises(LockedError, match=str(os.getpid())), locked(tmp_path, OUT, "wait"):
            pass
        with try_lock(tmp_path / LOCK) as is_mine:
            assert not is_mine
    assert not (tmp_path / HOLDER).exists()
    with locked(tmp_path, OUT, "wait"):
        pass


def test_an_error_inside_frees_the_lock(tmp_path):
    with pytest.raises(ValueError, match="inside"), locked(tmp_path, OUT, "wait"):
        raise ValueError("inside")
    with try_lock(tmp_path / LOCK) as is_mine:
        assert is_mine


def test_a_second_process_is_refused_with_the_firsts_pid(rapm, again):
    unfinished(again, "00000004")
    with locked(again.folder, OUT, "wait"):
        code, _, err = rapm("distill", "--resume")
    assert code == 8
    assert names(err, again.folder, "pid", os.getpid())
    with locked(again.folder, OUT, "wait"):
        (again.folder / "lock.json").write_text("[")
        assert rapm("distill", "--resume")[0] == 8
    (again.folder / "lock.json").write_text('{"pid": 1, "host": "gone", "since": "2026-01-01 00:00:00"}')
    code, _, err = rapm("distill", "--resume")
    assert code == 0
    assert names(err, "pid", 1, "gone", "2026-01-01 00:00:00")


def test_a_second_run_waits_for_the_trajectories_that_the_first_makes(rapm, again, home, monkeypatch):
    """Runs with one teacher share them, and another process may be at work on them."""
    from rapm_cli.runs import lock, signals

    monkeypatch.setattr(lock, "SILENT_SECONDS", 0)
    (store,) = (home / "cache" / "trajectories").iterdir()
    shutil.rmtree(next(path for path in store.iterdir() if path.is_dir()))  # a complete store is read without a lock
    with contextlib.ExitStack() as held:
        held.enter_context(locked(store, OUT, "wait"))
        monkeypatch.setattr(signals, "pause", lambda seconds: held.close())
        code, _, err = rapm(*DISTILL[:-1], "1")
    assert code == 0
    assert names(err, "pid", os.getpid())
    assert names(err, 4, "trajectories")

"""Locks of folders and files, within one process: each FileLock is a holder of its own."""

import json
import os

import pytest

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import LockedError
from rapm_cli.runs.lock import HOLDER, LOCK, locked, try_lock

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

"""Remedies of a disk that cannot be written: each removes its own cause."""

import errno
import os

import pytest

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.files import write_file
from rapm_cli.runs.retry import with_retries
from tests.messages import names


@pytest.fixture
def warned(monkeypatch):
    """Keep warnings, and pauses without waiting."""
    monkeypatch.setattr("rapm_cli.runs.signals.pause", lambda seconds: None)
    lines = []
    return type("Recorder", (), {"lines": lines, "warn": lambda self, line: lines.append(line)})()


@pytest.mark.parametrize(
    ("number", "tries", "cure"),
    [
        (errno.ENOSPC, 5, "free space"),
        (errno.EDQUOT, 5, "free space"),
        (errno.EACCES, 1, "permissions"),
        (errno.EPERM, 1, "permissions"),
        (errno.EEXIST, 1, "place"),
        (errno.EIO, 1, ""),
    ],
)
def test_only_a_full_disk_is_waited_for_and_answered_with_free_space(tmp_path, warned, number, tries, cure):
    tried = []

    def write():
        tried.append(1)
        raise OSError(number, os.strerror(number))

    with pytest.raises(DiskError) as caught:
        with_retries(write, tmp_path / "x", 0, warned, "nothing is lost", "go on")
    assert (len(tried), len(warned.lines)) == (tries, tries - 1)
    assert names(caught.value.message, tmp_path / "x", os.strerror(number), "nothing is lost")
    assert ("free space" in caught.value.remedy) == (tries > 1)
    assert names(caught.value.remedy, cure or "go on", "go on")


def test_a_file_in_the_place_of_a_folder_is_not_answered_with_free_space(tmp_path):
    (tmp_path / "x").write_text("")
    for path in (tmp_path / "x", tmp_path / "x" / "y"):
        with pytest.raises(OSError) as failed:  # noqa: PT011  FileExistsError or NotADirectoryError
            write_file(path, b"")
        told = DiskError.of(failed.value, path)
        assert "free space" not in told.remedy
        assert "in its place" in told.remedy

import shutil
from types import SimpleNamespace

import pytest

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.room import require_room


def test_a_small_image_fits_a_small_disk_and_a_large_one_does_not(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=100_000))
    require_room(tmp_path, 12_288, "an image")
    with pytest.raises(DiskError) as caught:
        require_room(tmp_path, 100_000, "an image")
    assert caught.value.is_full

"""What is known of a commit beforehand holds against whoever answers as the hub."""

import re

import pytest
from huggingface_hub import constants

from rapm_cli.bases.hub import fetch, one_file
from rapm_cli.bases.hub.digest import SHA256
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.core.common.errors import InputError
from tests.bases.hub_server import Seen, digest_of, in_this_process
from tests.messages import naming

REPO, FILE = "org/xl", "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def hub(tmp_path):
    with in_this_process(tmp_path / "hub") as hub:
        hub.repos[REPO] = {FILE: b"weights"}
        yield hub


def test_the_table_is_of_commits_that_rapm_names():
    assert set(SHA256) <= {published.revision for published in PUBLISHED.values()}
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for sums in SHA256.values() for digest in sums.values())


def test_a_mirror_with_other_bytes_is_refused_before_they_come(hub, monkeypatch):
    monkeypatch.setitem(SHA256, hub.commit(REPO), {FILE: digest_of(FILE, b"others")})
    with pytest.raises(InputError, match=f"{FILE} of {REPO}") as caught:
        fetch(REPO, None, one_file(FILE), Seen())
    assert "HF_ENDPOINT" in caught.value.remedy
    assert hub.sent == 0


def test_a_copy_in_a_cache_without_links_is_held_against_what_is_known_even_offline(hub, monkeypatch):
    monkeypatch.setitem(SHA256, hub.commit(REPO), {FILE: digest_of(FILE, b"weights")})
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    made = fetch(REPO, None, one_file(FILE), Seen())
    assert not (made.folder / FILE).is_symlink()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch(REPO, made.commit, one_file(FILE), Seen()) == made
    (made.folder / FILE).write_bytes(b"weightz")
    with pytest.raises(InputError, match=naming(FILE)):
        fetch(REPO, made.commit, one_file(FILE), Seen())


def test_another_commit_than_the_one_that_was_asked_for_is_refused(hub, monkeypatch):
    from tests.bases import hub_server

    monkeypatch.setattr(
        hub_server._Handler, "_info", lambda self, *_: self._json({"id": REPO, "sha": "1" * 40, "siblings": []})
    )
    with pytest.raises(InputError, match=f"{REPO}@{'1' * 12} .* @{hub.commit(REPO)[:12]}"):
        fetch(REPO, hub.commit(REPO), one_file(FILE), Seen())

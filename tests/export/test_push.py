"""`rapm export --push-to-hub`, to a hub on this machine."""

import json

import pytest
from huggingface_hub import constants

from rapm_cli.core.storage.commit import verify
from tests.bases.hub_server import in_this_process
from tests.messages import names

REPO = "someone/few-steps"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    with in_this_process(tmp_path / "hf") as hub:
        hub.writer = "hf_mine"
        yield hub


def push(rapm, output, *more):
    return rapm("export", "--base", "demo", "--output", str(output), "--push-to-hub", REPO, *more)


def test_the_folder_is_published_as_it_was_verified(rapm, hub, tmp_path):
    code, out, err = push(rapm, tmp_path / "out", "--json")
    assert code == 0, err
    manifest = verify(tmp_path / "out")
    assert hub.repos[REPO].keys() - {".gitattributes"} == manifest.files.keys()
    for name in manifest.files:
        assert hub.repos[REPO][name] == (tmp_path / "out" / name).read_bytes()
    assert json.loads(out)["url"] == f"{hub.url}/{REPO}/commit/{hub.commit(REPO)}"
    assert hub.repos[REPO]["README.md"].startswith(b"---\nlibrary_name: diffusers\n")
    assert "hf_mine" not in out + err


def test_what_may_not_be_written_leaves_the_export_and_says_so(rapm, hub, tmp_path):
    hub.writer = "hf_another"
    code, _, err = push(rapm, tmp_path / "out")
    assert code == 4
    assert names(err, REPO, tmp_path / "out", "hf auth login")
    assert verify(tmp_path / "out")
    hub.writer, hub.status = "hf_mine", 500
    code, _, err = push(rapm, tmp_path / "again")
    assert (code, names(err, 500)) == (3, True)


def test_what_could_not_be_published_is_not_made(rapm, hub, tmp_path, monkeypatch):
    cases = [(push(rapm, tmp_path / "x.safetensors"), 2, ".safetensors")]
    argv = ("export", "--base", "demo", "--output", str(tmp_path / "out"), "--push-to-hub")
    cases.append((rapm(*argv, "a/b/c"), 2, "a/b/c"))
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    cases.append((rapm(*argv, REPO), 4, "hf auth login"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    cases.append((rapm(*argv, REPO), 4, "offline"))
    for (code, _, err), wanted, named in cases:
        assert (code, named in err) == (wanted, True), err
    assert hub.requests == []
    assert not (tmp_path / "out").exists()

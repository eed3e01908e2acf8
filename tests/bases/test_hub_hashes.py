"""What the hub brought is verified by its hashes."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from rapm_cli.bases.hub import PIPELINE, fetch, snapshot
from rapm_cli.core.common.errors import InputError
from tests.bases.hub_pipeline import BIG, REPO
from tests.bases.hub_server import Seen, bytes_of, hf
from tests.messages import naming


def test_wrong_bytes_are_refused_and_come_right_when_the_server_is_mended(hub):
    hub.wrong = {BIG}
    for _ in range(2):
        with pytest.raises(InputError, match=naming(BIG, REPO)):
            fetch(REPO, None, PIPELINE, Seen())
    assert not list(Path(constants.HF_HUB_CACHE).rglob("*.incomplete"))
    hub.wrong = set()
    made = fetch(REPO, None, PIPELINE, Seen())
    assert bytes_of(made)[BIG] == hub.repos[REPO][BIG]


@pytest.mark.parametrize(("has_links", "revision"), [(True, False), (False, True)])
def test_a_damaged_file_is_found_by_its_hash_and_downloaded_again(hub, monkeypatch, has_links, revision):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", not has_links)
    made = fetch(REPO, None, PIPELINE, Seen())
    path = made.folder / BIG
    data = path.read_bytes()
    path.write_bytes(b"x" + data[1:])
    hub.forget()
    seen = Seen()
    assert fetch(REPO, made.commit if revision else None, PIPELINE, seen) == made
    assert path.read_bytes() == data
    assert hub.sent == len(data)
    assert str(path) in seen.said[0]
    hub.forget()
    assert fetch(REPO, made.commit, PIPELINE, Seen()) == made
    assert hub.requests == []


def test_damage_without_a_network_is_named_with_the_command_that_mends_it(hub, offline, monkeypatch):
    made = fetch(REPO, None, PIPELINE, Seen())
    path = made.folder / BIG
    data = path.read_bytes()
    path.write_bytes(b"x" + data[1:])
    offline()
    with pytest.raises(InputError) as caught:
        fetch(REPO, made.commit, PIPELINE, Seen())
    assert str(path) in caught.value.message
    assert path.exists()
    remedy = caught.value.remedy.removeprefix("download it again: ")
    assert remedy == f"hf download {REPO} --revision {made.commit} {BIG} --force-download"
    hf(hub, remedy)
    assert fetch(REPO, made.commit, PIPELINE, Seen()) == made
    assert path.read_bytes() == data


def test_files_are_hashed_once(hub, monkeypatch):
    made = fetch(REPO, None, PIPELINE, Seen())
    hashed = []
    real = snapshot.is_right
    monkeypatch.setattr(snapshot, "is_right", lambda path, *rest: hashed.append(path.name) or real(path, *rest))
    fetch(REPO, made.commit, PIPELINE, Seen())
    assert hashed == []
    (made.folder / BIG).resolve().touch()  # as if it had been written
    fetch(REPO, made.commit, PIPELINE, Seen())
    fetch(REPO, made.commit, PIPELINE, Seen())
    assert hashed == [Path(BIG).name]


def test_gigabytes_are_hashed_under_a_bar(hub, monkeypatch):
    made = fetch(REPO, None, PIPELINE, Seen())
    monkeypatch.setattr(snapshot, "LONG_BYTES", 1)
    (made.folder / BIG).resolve().touch()
    seen = Seen()
    fetch(REPO, made.commit, PIPELINE, seen)
    (bar,) = seen.bars
    assert (bar["title"], bar["unit"], bar["total"]) == ("verifying", "byte", len(hub.repos[REPO][BIG]))
    assert sum(bar["steps"]) == bar["total"]

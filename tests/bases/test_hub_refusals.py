"""What the hub refuses, and what is refused of the hub."""

import time

import pytest
from huggingface_hub import constants

from rapm_cli.bases.hub import PIPELINE, fetch, one_file
from rapm_cli.core.common.errors import ConfigError, DiskError, InputError, WeightsError
from tests.bases import hub_server
from tests.bases.hub_pipeline import BIG, NEEDED, REPO, a_pipeline
from tests.bases.hub_server import Seen
from tests.messages import naming


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "https://huggingface.co/org/xl, then run: hf auth login"),
        (403, "hf auth login"),
        (404, "check its name"),
        (503, "hf download org/xl"),
    ],
)
def test_what_the_hub_refuses_is_told_and_what_is_cached_is_used(hub, status, remedy):
    hub.status = status
    with pytest.raises(WeightsError, match=naming(REPO)) as caught:
        fetch(REPO, None, PIPELINE, Seen())
    assert remedy in caught.value.remedy
    hub.status = None
    made = fetch(REPO, None, PIPELINE, Seen())
    hub.status = status
    seen = Seen()
    assert fetch(REPO, None, PIPELINE, seen) == made
    assert made.commit[:12] in seen.said[0]


def test_a_revision_that_is_not_there(hub):
    with pytest.raises(WeightsError, match=naming("org/xl", "v2")):
        fetch(REPO, "v2", PIPELINE, Seen())
    for bad in ("../x", "/x"):
        with pytest.raises(ConfigError, match=bad):
            fetch(REPO, bad, PIPELINE, Seen())
    with pytest.raises(ConfigError, match=naming("../../x")):
        fetch("../../x", None, PIPELINE, Seen())


def test_a_network_that_is_not_there_is_not_waited_for(hub, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    begun = time.monotonic()
    with pytest.raises(WeightsError, match=naming(REPO)) as caught:
        fetch(REPO, None, PIPELINE, Seen())
    assert time.monotonic() - begun < 3
    assert f"hf download {REPO} --include" in caught.value.remedy


def test_another_page_in_the_hubs_place(hub, monkeypatch):
    monkeypatch.setattr(
        hub_server._Handler, "_info", lambda self, *_: self._send(200, {"Content-Type": "text/html"}, b"<html>login")
    )
    with pytest.raises(WeightsError, match="is not the hub"):
        fetch(REPO, None, PIPELINE, Seen())


@pytest.mark.parametrize(
    "index",
    [
        {"_class_name": ["my_pipeline", "MyPipeline"]},
        {"unet": ["my_unet", "MyUNet"]},
        {"image_encoder": ["my_encoder", "Encoder"]},
    ],
)
def test_a_repository_that_wants_to_run_code_is_refused_before_its_weights_come(hub, index):
    hub.repos[REPO] = a_pipeline(**index)
    for _ in range(2):
        with pytest.raises(InputError, match=naming(REPO)):
            fetch(REPO, None, PIPELINE, Seen())
    assert not any(".safetensors" in request or ".py" in request for request in hub.requests)


@pytest.mark.parametrize("name", ["../evil.json", "/etc/evil", "a/../../evil", "a\\..\\evil"])
def test_names_that_lead_out_of_the_cache_are_refused(hub, name):
    hub.repos[REPO][name] = b"x"
    with pytest.raises(InputError, match=naming(repr(name))):
        fetch(REPO, None, PIPELINE, Seen())


def test_a_repository_of_another_kind_is_told_what_it_lacks(hub):
    hub.repos[REPO] = {"config.json": b"{}", "model.safetensors": b"x"}
    with pytest.raises(InputError, match="model_index"):
        fetch(REPO, None, PIPELINE, Seen())
    hub.repos[REPO] = a_pipeline([name for name in NEEDED if not name.startswith("tokenizer_2/")])
    with pytest.raises(InputError, match="tokenizer_2"):
        fetch(REPO, None, PIPELINE, Seen())


def test_room_is_asked_for_before_the_download(hub, monkeypatch):
    monkeypatch.setattr("rapm_cli.core.storage.room.free_bytes", lambda place: 1000)
    with pytest.raises(DiskError, match=naming(REPO, "kB")) as caught:
        fetch(REPO, None, PIPELINE, Seen())
    assert caught.value.is_full
    assert hub.sent == 0


def test_a_cache_that_cannot_be_written_is_named(hub, tmp_path):
    (tmp_path / "hf").write_text("a file in its place")
    with pytest.raises(DiskError, match=str(tmp_path / "hf")):
        fetch(REPO, None, PIPELINE, Seen())


def test_a_login_goes_to_the_hub_and_is_never_said(hub, monkeypatch):
    token, told = "hf_abcdefghijklmnopqrstuv", []
    real = hub_server._Handler._answer
    monkeypatch.setattr(
        hub_server._Handler, "_answer", lambda self: told.append(self.headers.get("Authorization")) or real(self)
    )
    monkeypatch.setenv("HF_TOKEN", token)
    seen = Seen()
    fetch(REPO, None, one_file(BIG), seen)
    assert set(told) == {f"Bearer {token}"}
    hub.status = 503
    with pytest.raises(WeightsError) as caught:
        fetch(REPO, None, PIPELINE, seen)
    assert token not in " ".join([*seen.said, caught.value.message, caught.value.remedy])

"""LoRAs of the hub: found by repository, cached, and refused with the way out."""

import pytest

from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError, WeightsError
from rapm_cli.formats.lora import load_lora
from rapm_cli.runs.base_loras import read_refs
from rapm_cli.runs.hub_lora import named_lora
from tests.bases.hub_server import in_this_process
from tests.messages import names
from tests.style_lora import write_style

OUT, REPO = Output(quiet=True), "someone/lcm-lora"
USUAL, OTHER = "pytorch_lora_weights.safetensors", "extra_4step.safetensors"


@pytest.fixture
def hub(tmp_path, small_folder):
    style = write_style(tmp_path / "style.safetensors", small_folder).read_bytes()
    with in_this_process(tmp_path / "hub") as hub:
        hub.repos[REPO] = {USUAL: style, OTHER: style, "README.md": b"words", "run.py": b"code"}
        yield hub


def test_a_repository_names_its_usual_file_or_the_one_after_the_colon(hub):
    usual, other = named_lora(REPO, OUT), named_lora(f"{REPO}:{OTHER}", OUT)
    assert (usual.name, other.name) == (USUAL, OTHER)
    assert load_lora(usual).digest() == load_lora(other).digest()
    assert not any(name in request for request in hub.requests for name in ("README", "run.py"))
    (ref,) = read_refs([f"{REPO}:{OTHER}:0.5"], OUT)
    assert (ref.name, ref.weight) == (OTHER, 0.5)


def test_a_cached_file_needs_no_network(hub, monkeypatch):
    found = named_lora(REPO, OUT)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.forget()
    assert (named_lora(REPO, OUT), hub.requests) == (found, [])
    with pytest.raises(WeightsError) as caught:
        named_lora("someone/other:x.safetensors", OUT)
    assert names(caught.value.remedy, "hf download someone/other x.safetensors")


def test_what_a_repository_lacks_is_named(hub):
    hub.repos["someone/two"] = {"a.safetensors": b"1", "b.safetensors": b"2"}
    for name, *named in (
        ("someone/two", "a.safetensors", "b.safetensors"),
        (f"{REPO}:no.safetensors", "no.safetensors"),
    ):
        with pytest.raises(InputError) as caught:
            named_lora(name, OUT)
        assert names(caught.value.message, *named)
        assert names(caught.value.remedy, name.partition(":")[0])
    with pytest.raises(WeightsError) as unknown:
        named_lora("someone/nothing", OUT)
    assert names(unknown.value.message, "someone/nothing")


def test_a_path_that_does_not_exist_is_not_asked_of_the_hub(hub, tmp_path):
    for name in ("loras/style.safetensors", "./org/name", str(tmp_path / "none"), "plain"):
        with pytest.raises(InputError):
            named_lora(name, OUT)
    assert hub.requests == []


def test_generate_recognises_the_repository(hub, rapm, small_demo, tmp_path):
    code, _, err = rapm("generate", "a cube", "--base", "demo", "--lora", REPO, "--output", str(tmp_path / "pictures"))
    assert (code, names(err, "LCM", "lcm", 4)) == (0, True), err

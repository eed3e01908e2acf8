"""Downloads from a hub on this machine: what is asked for, what is kept, what is refused."""

import dataclasses
import errno
import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import constants, file_download, scan_cache_dir, try_to_load_from_cache

from rapm_cli.bases.demo.base import WEIGHTS
from rapm_cli.bases.hub import CONFIGS, PIPELINE, fetch, one_file
from rapm_cli.bases.hub.selection import LackingError, pipeline_files
from rapm_cli.core.common.errors import DiskError, Stopped, WeightsError
from rapm_cli.formats.lora import load_lora, save_lora
from tests.bases import hub_server
from tests.bases.hub_pipeline import BESIDE, BIG, NEEDED, NETWORKS, REPO, a_pipeline
from tests.bases.hub_server import Seen, bytes_of, hf
from tests.messages import names, naming


def test_only_what_is_needed_is_asked_for_and_a_bar_counts_its_bytes(hub):
    seen = Seen()
    made = fetch(REPO, None, PIPELINE, seen)
    assert sorted(made.files) == sorted(NEEDED)
    assert bytes_of(made) == {name: hub.repos[REPO][name] for name in NEEDED}
    assert made.commit == hub.commit(REPO)
    asked = {request.split(f"resolve/{made.commit}/")[1] for request in hub.requests if "/resolve/" in request}
    assert asked == set(NEEDED)
    total = sum(len(hub.repos[REPO][name]) for name in NEEDED)
    assert hub.sent == total
    assert seen.bars == [
        {"title": "downloading", "total": total, "unit": "byte", "begun": 0, "steps": seen.bars[0]["steps"]}
    ]
    assert sum(seen.bars[0]["steps"]) == total
    (said,) = seen.said
    for part in (f"{REPO}@{made.commit[:12]}", f"{len(NEEDED)} files", "kB", constants.HF_HUB_CACHE):
        assert part in said


def test_a_commit_that_is_here_makes_no_request_and_a_branch_makes_one(hub, offline):
    made = fetch(REPO, None, PIPELINE, Seen())
    hub.forget()
    seen = Seen()
    assert fetch(REPO, made.commit, PIPELINE, seen) == made
    assert hub.requests == []
    assert fetch(REPO, None, PIPELINE, seen) == made
    assert hub.requests == [f"GET /api/models/{REPO}/revision/main"]
    offline()
    assert fetch(REPO, None, PIPELINE, seen) == made
    assert len(hub.requests) == 1
    assert (seen.said, seen.bars) == ([], [])


def test_configurations_alone_come_without_weights_and_the_weights_later(hub):
    made = fetch(REPO, None, CONFIGS, Seen())
    assert sorted(made.files) == sorted(name for name in NEEDED if not name.endswith(".safetensors"))
    hub.forget()
    whole = fetch(REPO, made.commit, PIPELINE, Seen())
    assert sorted(whole.files) == sorted(NEEDED)
    assert all(request.endswith(".safetensors") for request in hub.requests if "/resolve/" in request)


@pytest.fixture
def no_waits(monkeypatch):
    """huggingface_hub waits a second before it tries again."""
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda seconds: None))


def test_complete_files_of_a_broken_download_are_not_downloaded_again(hub, no_waits):
    hub.cuts, hub.cut_after = 10, len(hub.repos[REPO][BIG]) - 1  # only the largest file breaks off
    with pytest.raises(WeightsError, match=f"{BIG} of org/xl") as caught:
        fetch(REPO, None, PIPELINE, Seen())
    assert "the same command" in caught.value.remedy
    came = {
        request.split("/resolve/")[1]
        for request in hub.requests
        if request.startswith("GET") and "/resolve/" in request
    }
    hub.forget()
    hub.cuts = 0
    seen = Seen()
    made = fetch(REPO, None, PIPELINE, seen)
    assert bytes_of(made) == {name: hub.repos[REPO][name] for name in NEEDED}
    asked = {request.split("/resolve/")[1] for request in hub.requests if "/resolve/" in request}
    assert BIG in {name.split("/", 1)[1] for name in asked}
    assert came & asked <= {f"{made.commit}/{BIG}"}
    assert sum(seen.bars[0]["steps"]) == hub.sent == seen.bars[0]["total"]


def test_a_connection_that_breaks_once_is_resumed_within_the_file(hub, no_waits, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)
    hub.cuts, hub.cut_after = 1, 1000
    made = fetch(REPO, None, one_file(BIG), Seen())
    assert bytes_of(made) == {BIG: hub.repos[REPO][BIG]}
    assert hub.ranges == ["bytes=1000-"]


def test_a_server_without_ranges_sends_the_whole_again(hub, no_waits):
    hub.cuts, hub.cut_after, hub.has_ranges = 1, 1000, False
    seen = Seen()
    made = fetch(REPO, None, one_file(BIG), seen)
    assert bytes_of(made) == {BIG: hub.repos[REPO][BIG]}
    assert sum(seen.bars[0]["steps"]) == len(hub.repos[REPO][BIG])


@pytest.mark.parametrize("answer", [b"login", b"login" * 10**6])
def test_a_page_in_the_place_of_a_file_is_refused_and_not_kept(hub, monkeypatch, no_waits, answer):
    with monkeypatch.context() as patch:
        patch.setattr(hub_server._Handler, "_file", lambda self, *_: self._send(200, {}, answer))
        with pytest.raises(WeightsError, match=BIG):
            fetch(REPO, None, one_file(BIG), Seen())
    assert not any(path.is_file() and path.read_bytes() == answer for path in Path(constants.HF_HUB_CACHE).rglob("*"))
    assert bytes_of(fetch(REPO, None, one_file(BIG), Seen())) == {BIG: hub.repos[REPO][BIG]}


def breaking(monkeypatch, error: BaseException):
    """Raise an error when the first bytes of the largest file have come."""
    real = Seen.bar

    @contextmanager
    def bar(self, *args, **named):
        with real(self, *args, **named) as inner:

            def advance(count=1, note=""):
                inner.advance(count, note)
                if BIG in note:
                    raise error

            yield SimpleNamespace(advance=advance)

    monkeypatch.setattr(Seen, "bar", bar)


def test_a_disk_that_fills_up_on_the_way_is_named(hub, monkeypatch):
    with monkeypatch.context() as patch:
        breaking(patch, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        with pytest.raises(DiskError, match=f"{BIG} of {REPO} .*No space left") as caught:
            fetch(REPO, None, one_file(BIG), Seen())
    assert caught.value.is_full
    assert bytes_of(fetch(REPO, None, one_file(BIG), Seen())) == {BIG: hub.repos[REPO][BIG]}


def test_what_another_commit_brought_is_linked_without_a_word(hub):
    fetch(REPO, None, PIPELINE, Seen())
    hub.repos[REPO]["README.md"] = b"new"
    hub.forget()
    seen = Seen()
    assert bytes_of(fetch(REPO, None, PIPELINE, seen)) == {name: hub.repos[REPO][name] for name in NEEDED}
    assert (hub.sent, seen.said, seen.bars) == (0, [], [])


def test_a_signal_keeps_the_complete_files(hub, monkeypatch):
    with monkeypatch.context() as patch:
        breaking(patch, Stopped(15))
        with pytest.raises(Stopped, match=REPO) as caught:
            fetch(REPO, None, PIPELINE, Seen())
    assert caught.value.exit_code == 143
    kept = {path.relative_to(path.parents[-1]).as_posix() for path in Path(constants.HF_HUB_CACHE).rglob("*.json")}
    hub.forget()
    fetch(REPO, None, PIPELINE, Seen())
    assert kept
    assert not any(request.endswith("model_index.json") for request in hub.requests)


def test_weights_in_full_precision_are_used_where_they_are_here_and_others_are_not(hub):
    hub.repos[REPO] = a_pipeline([*NEEDED, *BESIDE])
    for part, stem in NETWORKS.items():
        if part != "vae":
            fetch(REPO, None, one_file(f"{part}/{stem}.safetensors"), Seen())
    hub.forget()
    made = fetch(REPO, None, PIPELINE, Seen())
    assert "unet/diffusion_pytorch_model.safetensors" in made.files
    assert BIG not in made.files
    assert "vae/diffusion_pytorch_model.fp16.safetensors" in made.files  # that one had to come
    assert [request for request in hub.requests if request.startswith("GET /cdn/")] == [
        f"GET /cdn/{REPO}/{made.commit}/vae/diffusion_pytorch_model.fp16.safetensors"
    ]


def test_a_new_commit_brings_only_what_changed(hub):
    old = fetch(REPO, None, PIPELINE, Seen())
    hub.repos[REPO]["vae/config.json"] = b"new"
    hub.forget()
    new = fetch(REPO, None, PIPELINE, Seen())
    assert new.commit != old.commit
    assert hub.sent == 3
    assert bytes_of(new) == bytes_of(old) | {"vae/config.json": b"new"}


@pytest.mark.parametrize("fp16", ["{}.fp16-0000{}-of-00002.safetensors", "{}-0000{}-of-00002.fp16.safetensors"])
def test_shards_are_taken_whole_with_their_index(fp16):
    stem = "diffusion_pytorch_model"
    shards = [f"unet/{fp16.format(stem, k)}" for k in (1, 2)]
    index = f"unet/{stem}.safetensors.index.fp16.json"
    names = [name for name in NEEDED if name != BIG]
    whole = [*names, *shards, index, f"unet/{stem}.safetensors"]
    assert set(pipeline_files(whole, [])) == {*names, *shards, index}
    for lost in (*shards, index):
        rest = [name for name in whole if name != lost]
        assert set(pipeline_files(rest, [])) == {*names, f"unet/{stem}.safetensors"}
        with pytest.raises(LackingError, match=naming("unet")):
            pipeline_files([name for name in rest if name != f"unet/{stem}.safetensors"], [])


@pytest.mark.parametrize("lost", ["tokenizer_2/merges.txt", "text_encoder/model.fp16.safetensors"])
def test_a_cache_that_lacks_one_file_is_filled_up_and_offline_names_the_command(hub, offline, lost):
    made = fetch(REPO, None, PIPELINE, Seen())
    (made.folder / lost).unlink()
    offline()
    with pytest.raises(WeightsError, match=naming(REPO)) as caught:
        fetch(REPO, made.commit, PIPELINE, Seen())
    assert f"hf download {REPO} --revision {made.commit}" in caught.value.remedy


def test_a_part_that_only_the_index_names_is_missed(hub, offline):
    made = fetch(REPO, None, PIPELINE, Seen())
    for path in [*(made.folder / "text_encoder_2").iterdir(), *(made.folder / "tokenizer_2").iterdir()]:
        path.unlink()
    offline()
    with pytest.raises(WeightsError, match="is not complete in the Hugging Face cache"):
        fetch(REPO, made.commit, PIPELINE, Seen())


@pytest.mark.parametrize(("selection", "revision"), [(PIPELINE, False), (CONFIGS, True)])
def test_the_command_that_an_error_names_brings_exactly_what_is_needed(hub, offline, selection, revision):
    commit = hub.commit(REPO) if revision else None
    offline()
    with pytest.raises(WeightsError) as caught:
        fetch(REPO, commit, selection, Seen())
    assert hub.requests == []
    hf(hub, caught.value.remedy.removeprefix("on a machine with a network run: "))
    hub.forget()
    made = fetch(REPO, commit, selection, Seen())
    assert bytes_of(made) == {name: hub.repos[REPO][name] for name in selection.choose(hub.repos[REPO], [])}


def test_where_no_half_precision_is_published_a_second_command_brings_the_whole(hub, offline):
    hub.repos[REPO] = {name: data for name, data in hub.repos[REPO].items() if "fp16" not in name}
    offline()
    for _ in range(2):
        with pytest.raises(WeightsError) as caught:
            fetch(REPO, None, PIPELINE, Seen())
        hf(hub, caught.value.remedy.removeprefix("on a machine with a network run: "))
    hub.forget()
    made = fetch(REPO, None, PIPELINE, Seen())
    assert bytes_of(made) == {name: hub.repos[REPO][name] for name in pipeline_files(hub.repos[REPO], [])}
    assert hub.requests == []
    assert set(made.files) == {
        path.relative_to(made.folder).as_posix() for path in made.folder.rglob("*") if path.is_file()
    }


def test_where_no_half_precision_is_published_the_second_command_names_the_files(hub, offline):
    names = [name.replace(".fp16", "") for name in NEEDED]
    hub.repos[REPO] = a_pipeline(names)
    offline()
    for expected in (["*fp16*"], names):
        with pytest.raises(WeightsError) as caught:
            fetch(REPO, hub.commit(REPO), PIPELINE, Seen())
        command = caught.value.remedy.removeprefix("on a machine with a network run: ")
        assert all(name in command for name in expected)
        hf(hub, command)
    assert sorted(fetch(REPO, hub.commit(REPO), PIPELINE, Seen()).files) == sorted(names)


def test_huggingface_hub_finds_what_rapm_put_into_its_cache(hub):
    made = fetch(REPO, None, PIPELINE, Seen())
    for name in NEEDED:
        assert try_to_load_from_cache(REPO, name, cache_dir=constants.HF_HUB_CACHE) == str(made.folder / name)
    info = scan_cache_dir(constants.HF_HUB_CACHE)
    assert list(info.warnings) == []
    (repo,) = info.repos
    assert (repo.repo_id, set(repo.refs)) == (REPO, {"main"})
    assert repo.size_on_disk == sum(len(hub.repos[REPO][name]) for name in NEEDED)


def test_a_cache_without_links_holds_each_file_once_and_is_verified_by_the_hubs_hashes(hub, monkeypatch, home):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    made = fetch(REPO, None, PIPELINE, Seen())
    assert not any(path.is_symlink() for path in made.folder.rglob("*"))
    assert not list((made.folder.parent.parent / "blobs").iterdir())
    hub.forget()
    assert fetch(REPO, made.commit, PIPELINE, Seen()) == made
    assert hub.requests == []
    (made.folder / BIG).write_bytes(b"x" * len(hub.repos[REPO][BIG]))
    hub.status = 503  # without the hub there is nothing to compare with
    assert fetch(REPO, made.commit, PIPELINE, Seen()) == made


def test_two_processes_at_once_download_each_file_once(hub):
    code = (
        "from rapm_cli.bases.hub import PIPELINE, fetch\nfrom rapm_cli.cli.console import Output\n"
        f"print(fetch({REPO!r}, None, PIPELINE, Output(quiet=True)))"
    )
    environment = os.environ | hub.environment(Path(constants.HF_HUB_CACHE).parent)
    both = [subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=-1, text=True) for _ in range(2)]
    first, second = [process.communicate()[0] for process in both]
    assert first == second != ""
    assert hub.sent == sum(len(hub.repos[REPO][name]) for name in NEEDED)


@pytest.mark.slow
def test_generate_samples_with_a_base_of_the_hub_and_then_without_a_network(hub, rapm, tmp_path):
    base, lora = WEIGHTS / "base", str(tmp_path / "lora.safetensors")
    shipped = load_lora(WEIGHTS / "rapm-demo.safetensors")
    save_lora(Path(lora), dataclasses.replace(shipped, recipe={"base": "org/tiny"}))
    files = [path for path in base.rglob("*") if path.is_file()]
    hub.repos["org/tiny"] = {path.relative_to(base).as_posix(): path.read_bytes() for path in files}

    words = ["generate", "a red cube", "--base", "org/tiny", "--lora", lora, "--output", str(tmp_path / "images")]

    def generate(*more: str):
        environment = os.environ | hub.environment(tmp_path / "hf")
        command = [sys.executable, "-m", "rapm_cli", *words, *more]
        return subprocess.run(command, env=environment, capture_output=True, text=True)

    refused = generate("--offline")
    assert refused.returncode == 4, refused.stderr
    assert names(refused.stderr, "--offline", "HF_HUB_OFFLINE", "hf download org/tiny --include")
    assert hub.requests == []
    code, _, said = rapm(*words)
    assert code == 0, said
    assert names(said, "org/tiny")
    assert names(said, "21.5/21.5 MB", "MB/s")
    hub.forget()
    again = generate("--offline")
    assert again.returncode == 0, again.stderr
    assert "MB/s" not in again.stderr
    assert hub.requests == []
    first, second = sorted((tmp_path / "images").glob("*.png"))
    assert first.read_bytes() == second.read_bytes()

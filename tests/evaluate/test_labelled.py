"""`rapm eval` of a base with labelled prompts: one engine, every prompt sampled once."""

import hashlib
import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.bases import BASES, LabelledPrompts
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.evaluate import samples as module
from rapm_cli.evaluate.chunk_cache import ChunkCache, is_intact
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.evaluate.plan import Labels, SamplePlan, labelled_plan
from rapm_cli.evaluate.samples import SampleSet
from rapm_cli.metrics import METRICS, NAMES
from tests.small_demo import use_small_demo

QUIET = Output(quiet=True)


@pytest.fixture(scope="module")
def whole(short_run, small_folder, tmp_path_factory):
    """The record of an evaluation of both splits, its noise by purpose and number, and its network evaluations."""
    import contextlib
    import io

    from rapm_cli.cli.app import main

    noise, rows, out = Counter(), [], io.StringIO()
    real_noise, real_predict = module.initial_noise, Backbone.predict

    def initial_noise(seed, purpose, indices, shape):
        noise.update((purpose, k) for k in indices)
        return real_noise(seed, purpose, indices, shape)

    def predict(self, role, z, *arguments):
        rows.append(len(z))
        return real_predict(self, role, z, *arguments)

    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("RAPM_HOME", str(tmp_path_factory.mktemp("whole")))
        use_small_demo(small_folder, patch)
        patch.setattr(module, "initial_noise", initial_noise)
        patch.setattr(Backbone, "predict", predict)
        assert main(["eval", "--lora", str(short_run), "--samples", "8", "--json"]) == 0
        home = Path(os.environ["RAPM_HOME"])
    return json.loads(out.getvalue()), noise, sum(rows), home


def test_every_prompt_is_sampled_once_by_every_model(whole):
    record, noise, evaluations, _ = whole
    rows = [row for split in record["parts"] for row in split["rows"]]
    purposes = [f"exam {held_out}{more}" for held_out in (0, 1) for more in ("", ", other noise")]
    assert noise == {(purpose, k): 3 for purpose in purposes for k in range(8)}
    assert evaluations == 2 * sum(row["evaluations"] * row["pictures"] for row in rows) == 2 * 2 * 8 * (16 + 4 + 4)


def test_every_split_has_every_metric_of_the_same_samples(whole):
    record, *_ = whole
    labelled, compared = {"attributes", "pictures"}, {name for name in NAMES if METRICS[name].wants_teacher}
    without_latents = {name for name in compared if METRICS[name].wants_positions or METRICS[name].wants_others}
    for split in record["parts"]:
        teacher, *others = split["rows"]
        assert set(teacher["metrics"]) == labelled
        assert all(set(row["metrics"]) == labelled | compared for row in others)
        (control,) = split["controls"]
        assert set(control["metrics"]) == compared - without_latents
        assert control["pictures"] == 8
    assert set(record["legend"]) == labelled | compared
    assert record["rows"] == record["parts"][0]["rows"]
    assert record["extractors"]["demo"].startswith("demo reader")


def test_fidelity_is_the_distance_to_the_teachers_images_of_the_same_noise(whole):
    teacher, _, student = whole[0]["rows"]
    images = [
        {int(path.stem): np.array(Image.open(path)).astype(float) for path in Path(row["folder"]).glob("0*/*.png")}
        for row in (student, teacher)
    ]
    assert sorted(images[0]) == sorted(images[1]) == list(range(8))
    off = [float(np.sqrt(((images[0][k] - images[1][k]) ** 2).mean())) for k in range(8)]
    assert student["metrics"]["fidelity"]["by_prompt"] == pytest.approx(off, abs=1e-4)
    edges = student["positions_by_edge"]
    assert student["metrics"]["latents"]["value"] == pytest.approx(edges[0], rel=1e-5)
    assert student["metrics"]["position"]["value"] == pytest.approx(np.mean(edges), rel=1e-5)


def test_a_page_has_a_table_for_each_split_and_images_of_the_first(whole):
    page = Path(whole[0]["report"]).read_text()
    for split in whole[0]["parts"]:
        assert f"8 {split['part']}, seed 0" in page
    assert page.count("image difference ↓") == 2
    assert METRICS["fidelity"].blind_to in page
    assert page.count("data:image/png") >= 3 * 8


def test_the_same_again_samples_nothing_and_fewer_images_are_enough(rapm, whole, short_run, small_demo, monkeypatch):
    record, _, _, home = whole
    monkeypatch.setenv("RAPM_HOME", str(home))
    monkeypatch.setattr(SampleSet, "_make", lambda *_: pytest.fail("sampled again"))
    argv = ("eval", "--lora", str(short_run), "--samples", "8", "--json")
    again = json.loads(rapm(*argv)[1])
    assert again["parts"] == record["parts"]
    none = json.loads(rapm(*argv, "--teacher-samples", "0", "--metrics", "attributes")[1])
    assert "folder" not in none["rows"][0]
    assert [row["metrics"]["attributes"] for row in none["rows"]] == [
        row["metrics"]["attributes"] for row in record["rows"]
    ]


def test_a_stop_keeps_every_batch_and_the_same_command_resumes(rapm, whole, short_run, small_demo, monkeypatch, home):
    argv = ("eval", "--lora", str(short_run), "--samples", "8", "--split", "held-out", "--batch-size", "4")
    real = ChunkCache.keep

    def keep(self, name, files, about=None):
        real(self, name, files, about)
        os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(ChunkCache, "keep", keep)
        assert rapm(*argv)[0] == 130
    (kept,) = (home / "cache" / "readings").glob("*/readings.safetensors")
    before = kept.stat().st_mtime_ns
    code, out, _ = rapm(*argv, "--json")
    assert (code, kept.stat().st_mtime_ns) == (0, before)
    assert not list(home.rglob("*.claim"))
    values = [
        {name: value["value"] for name, value in row["metrics"].items()}
        for row in (whole[0]["rows"][2], json.loads(out)["rows"][2])
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-3)  # only the batch differs


def labelled_set(count=4, batch=2):
    known = LabelledPrompts(
        [f"prompt {k}" for k in range(count)],
        torch.zeros(count, 3, dtype=torch.int64),
        torch.ones(count, 3, dtype=torch.bool),
        lambda numbers: torch.zeros(len(numbers), 3, 8, 8),
        "demo",
    )
    plan = SamplePlan(known.prompts, 7, batch, labels=Labels(known, True, None))
    return SampleSet(EvalModel("student", 4, 4, lambda z, cond: [z], "some weights"), plan)


def test_answers_are_found_under_the_keys_of_older_versions():
    key = json.dumps(["some weights", 7, True, 2, ["prompt 2", "prompt 3"]])
    assert labelled_set()._feature_chunk(range(2, 4)) == hashlib.sha256(key.encode()).hexdigest()[:24]


def test_a_longer_list_of_labelled_prompts_begins_with_a_shorter_one():
    short, long = (labelled_plan(BASES["demo"], count, 3, True, QUIET) for count in (3, 5))
    assert long.prompts[:3] == short.prompts
    assert torch.equal(long.labels.known.labels[:3], short.labels.known.labels)
    images = [plan.labels.known.true_images(range(2, 3)) for plan in (short, long)]
    assert torch.equal(*images)
    features, answers = short.labels.reader.read(short.labels.known.true_images(range(3)))
    assert torch.equal(features, short.labels.reference(range(3)))
    right = (answers == short.labels.known.labels)[short.labels.known.asked[:3]]
    assert right.float().mean() > 0.9  # the reader knows a true image


@pytest.mark.parametrize(("files", "is_kept"), [(("a",), True), (("a", "b"), True), (("c",), False)])
def test_a_chunk_is_kept_with_its_files(tmp_path, files, is_kept):
    cache = ChunkCache(tmp_path, QUIET)
    cache.keep("chunk", {"a": b"1", "b": b"2"}, {"seconds": 1.0})
    assert cache.has("chunk", *files) == is_intact(tmp_path / "chunk", *files) == is_kept


def test_a_damaged_chunk_is_missing_and_an_error_where_damage_is(tmp_path):
    cache = ChunkCache(tmp_path, QUIET)
    cache.keep("chunk", {"a": b"1"})
    (tmp_path / "chunk" / "a").write_bytes(b"0")
    assert not cache.has("chunk", "a")
    with pytest.raises(DamagedError):
        ChunkCache(tmp_path, QUIET, is_strict=True).has("chunk", "a")
    cache.keep("chunk", {"a": b"1"})
    assert cache.has("chunk", "a")


def test_a_chunk_that_lacks_a_file_is_replaced_and_one_that_has_it_is_left_alone(tmp_path):
    cache = ChunkCache(tmp_path, QUIET)
    cache.keep("chunk", {"a": b"1"})
    cache.keep("chunk", {"a": b"1", "b": b"2"})
    before = (tmp_path / "chunk" / "a").stat().st_mtime_ns
    cache.keep("chunk", {"a": b"3"})
    assert ((tmp_path / "chunk" / "a").read_bytes(), (tmp_path / "chunk" / "a").stat().st_mtime_ns) == (b"1", before)

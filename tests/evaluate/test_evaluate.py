"""`rapm eval` of a small base of the visible world, from end to end."""

import gc
import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from rapm_cli.bases import LoadedBase
from rapm_cli.core.storage.files import file_sha256
from rapm_cli.evaluate.reference import coco_pairs
from rapm_cli.extractors import inception
from rapm_cli.extractors.inception import load_inception
from rapm_cli.formats.lora import load_lora, save_lora
from rapm_cli.metrics import METRICS, NAMES
from rapm_cli.runs.lock import try_lock
from tests.evaluate.small_world import COUNT, command, write_world
from tests.forked import Forked
from tests.messages import names
from tests.metrics.peers import peer

JUDGES = {name for name in NAMES if METRICS[name].wants_teacher and METRICS[name].fewest <= 4}
COCO = ("--protocol", "coco30k", "--samples", COUNT, "--teacher-samples", 4, "--batch-size", 4)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return write_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def evaluate(world, rapm, monkeypatch):
    """Run `rapm eval`; what it says as JSON, or the code and the error."""
    monkeypatch.setattr(inception, "SHA256", file_sha256(world / "inception.pth"))

    def run(*more, lora="a"):
        code, out, err = rapm(*command(world, *more, "--json", lora=lora))
        return json.loads(out) if code == 0 else (code, err)

    return run


def test_usual_metrics_without_weights_are_left_out_and_the_rest_is_given(world, evaluate, rapm):
    bare = ["eval", "--base", str(world / "small-sdxl"), "--lora", str(world / "a.safetensors"), "--samples", "4"]
    bare += ["--reference", str(world / "coco" / "val2014"), "--teacher-samples", "4", "--precision", "fp32"]
    code, out, err = rapm(*bare, "--json")
    assert code == 0, err
    assert set(json.loads(out)["rows"][-1]["metrics"]) == JUDGES
    for lost in (("FID", "KID", "Inception"), ("CLIP", "openai/clip-vit-base-patch16")):
        assert names(err, "warning", *lost), err
    for asked in (["--metrics", "fidelity,clip"], ["--clip-model", "someone/clip"], ["--inception", "/no/where"]):
        assert rapm(*bare, *asked)[0] == 4
    assert rapm(*bare, "--metrics", "clip")[0] == 4


def images_of(row):
    """Every kept image of a row, by number."""
    return {int(path.stem): np.array(Image.open(path)) for path in sorted(Path(row["folder"]).glob("0*/*.png"))}


def prepared(path):
    """A real image as coco30k has it, by Pillow alone."""
    image = Image.open(path).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC))


def seen(world, images):
    resize = peer("cleanfid.resize").make_resizer("PIL", False, "bicubic", (299, 299))
    batch = torch.from_numpy(np.stack([resize(image) for image in images])).permute(0, 3, 1, 2)
    return load_inception(world / "inception.pth")((batch - 128) / 128).double().numpy()


def test_coco30k_gives_the_fid_and_clip_score_of_its_own_images(world, evaluate):
    record = evaluate(*COCO, "--reference", f"coco:{world / 'coco'}")
    teacher, base, student = record["rows"]
    drawn, pairs = images_of(student), coco_pairs(world / "coco", COUNT)
    assert sorted(drawn) == list(range(COUNT))
    assert {image.shape for image in drawn.values()} == {(256, 256, 3)}
    ours, real = seen(world, drawn.values()), seen(world, [prepared(pair.path) for pair in pairs])
    s, t = np.cov(ours, rowvar=False), np.cov(real, rowvar=False)
    cross = scipy.linalg.svdvals((ours - ours.mean(0)) @ (real - real.mean(0)).T).sum() / (COUNT - 1)
    fid = ((ours.mean(0) - real.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * cross
    assert student["metrics"]["fid"]["value"] == pytest.approx(fid, rel=1e-4)
    theirs = peer("torch_fidelity.metric_kid").kid_features_to_metric(
        torch.tensor(ours), torch.tensor(real), kid_subsets=1, kid_subset_size=COUNT, verbose=False
    )
    kid = student["metrics"]["kid"]
    assert kid["value"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4)
    assert kid["low"] < kid["value"] < kid["high"]
    assert student["metrics"]["clip"]["value"] == pytest.approx(torchmetrics_clip(world, drawn, pairs), abs=1e-3)
    assert record["protocol"] == "coco30k, but another CLIP, but 12 prompts"  # whose figures are not coco30k's
    assert (record["samples"], record["beside_teacher"]) == (COUNT, 4)
    assert "inception" in record["extractors"]["inception"]
    assert record["reference"]["inception"]["made"].startswith("12 ")
    assert [name for name in student["metrics"] if name in ("fid", "kid")] == ["kid", "fid"]  # of few images
    assert teacher["metrics"] == {}
    assert sorted(images_of(teacher)) == list(range(4))
    assert set(base["metrics"]) == JUDGES
    assert [row["name"].split(",")[0] for row in record["controls"]] == ["teacher's other noise"]


def torchmetrics_clip(world, drawn, pairs):
    """Before it cuts what is below zero, which random weights may be."""
    from transformers import CLIPModel, CLIPProcessor

    class Tensors(CLIPModel):  # torchmetrics 1.9 expects what transformers 4 returned
        def get_image_features(self, *args):
            return super().get_image_features(*args).pooler_output

        def get_text_features(self, *args):
            return super().get_text_features(*args).pooler_output

    model = Tensors.from_pretrained(world / "clip")
    processor = CLIPProcessor.from_pretrained(world / "clip", backend="pil")
    update = peer("torchmetrics.functional.multimodal.clip_score")._clip_score_update
    images = [torch.from_numpy(drawn[k]).permute(2, 0, 1) for k in range(COUNT)]
    with torch.no_grad():
        total, count = update(images, [pair.caption for pair in pairs], model, processor)
    return float(total.sum() / count)


def test_two_students_are_compared_prompt_by_prompt(world, evaluate):
    options = ("--samples", 8, "--teacher-samples", 8, "--batch-size", 4, "--metrics", "clip,latents")
    record = evaluate(*options, "--compare-lora", world / "b.safetensors")
    first, second = record["rows"][-2:]
    for name in ("clip", "latents"):
        a, b = (np.array(row["metrics"][name]["by_prompt"]) for row in (first, second))
        found = record["differences"][name]
        assert found["mean"] == pytest.approx((a - b).mean(), abs=1e-4)
        assert (found["first"], found["second"]) == ((a > b).sum(), (a < b).sum())
        assert 0 < found["p_value"] <= 1
    swapped = evaluate(*options, "--compare-lora", world / "a.safetensors", lora="b")
    assert swapped["differences"]["clip"]["mean"] == pytest.approx(-record["differences"]["clip"]["mean"], rel=1e-6)
    assert swapped["fingerprint"] == record["fingerprint"]  # of all but the students


def test_students_of_different_teachers_are_not_compared(world, evaluate, tmp_path):
    lora = load_lora(world / "b.safetensors")
    teacher = lora.recipe["teacher"] | {"guidance_scale": 4.0}
    save_lora(tmp_path / "other.safetensors", replace(lora, recipe=lora.recipe | {"teacher": teacher}))
    code, err = evaluate("--samples", 4, "--metrics", "clip", "--compare-lora", tmp_path / "other.safetensors")
    assert (code, "have different teachers" in err) == (2, True)


def test_a_second_student_has_the_memory_of_the_first(world, evaluate, monkeypatch):
    """When it is drawn no other base is alive."""
    alive = weakref.WeakSet()
    original = LoadedBase.__init__

    def counted(self, *args):
        gc.collect()
        assert len(alive) == 0
        alive.add(self)
        original(self, *args)

    monkeypatch.setattr(LoadedBase, "__init__", counted)
    record = evaluate(
        "--samples", 4, "--teacher-samples", 4, "--metrics", "fidelity", "--compare-lora", world / "b.safetensors"
    )
    assert len(record["rows"]) == 4


def test_images_are_the_same_for_every_batch_size(evaluate):
    options = ("--samples", 4, "--teacher-samples", 0, "--metrics", "clip")
    alone, together = (images_of(evaluate(*options, "--batch-size", size)["rows"][0]) for size in (1, 3))
    assert max(np.abs(alone[k].astype(int) - together[k]).max() for k in range(4)) <= 1


def test_processes_share_the_images_and_the_first_alone_answers(world, evaluate, home):
    """At once, started together and by themselves."""
    options = ("--samples", 24, "--teacher-samples", 4, "--metrics", "clip,latents", "--batch-size", 2)
    alone = evaluate(*options)
    drawn = images_of(alone["rows"][2])
    for number, started in enumerate(([("0", "2"), ("1", "2")], [("0", "1"), ("0", "1")])):
        shared, jobs = home.with_name(f"shared-{number}"), []
        for rank, of in started:
            told = {"RAPM_HOME": str(shared), "RANK": rank, "WORLD_SIZE": of}
            jobs.append(Forked(command(world, *options, "--json"), told))
        ends = [job.communicate(timeout=300) for job in jobs]
        assert [job.returncode for job in jobs] == [0, 0], ends
        record = json.loads(ends[0][0])
        assert [row["metrics"] for row in record["rows"]] == [row["metrics"] for row in alone["rows"]]
        by_two = images_of(record["rows"][2])
        assert all(np.array_equal(drawn[k], by_two[k]) for k in range(24))
        assert (ends[1][0] == "") == (started[1][0] == "1")
        assert not list(shared.rglob("*.claim"))


def test_a_batch_is_taken_by_one_process_at_a_time(tmp_path):
    place = tmp_path / "work" / "0.claim"
    with try_lock(place, remove=True) as first, try_lock(place, remove=True) as second:
        assert (first, second) == (True, False)
    with try_lock(place, remove=True) as again:
        assert again
    assert list(place.parent.iterdir()) == []


def test_a_longer_evaluation_makes_only_what_a_shorter_one_lacks(evaluate):
    """More prompts, and the positions of prompts that the teacher samples now."""
    options = ("--batch-size", 4, "--metrics", "clip,latents")
    first = evaluate(*options, "--samples", 8, "--teacher-samples", 4)
    before = {path: path.stat().st_mtime_ns for path in Path(first["rows"][2]["folder"]).glob("0*/*.png")}
    second = evaluate(*options, "--samples", 12, "--teacher-samples", 8)
    after = {path: path.stat().st_mtime_ns for path in Path(second["rows"][2]["folder"]).glob("0*/*.png")}
    assert {int(path.stem) for path in after} == set(range(12))
    assert {int(path.stem) for path in before} == set(range(8))
    assert {int(path.stem) for path in before if before[path] != after[path]} == {4, 5, 6, 7}
    by_prompt = [record["rows"][2]["metrics"]["clip"]["by_prompt"] for record in (first, second)]
    assert by_prompt[0] == pytest.approx(by_prompt[1][:8], abs=1e-4)
    assert first["fingerprint"] != second["fingerprint"]


def test_features_are_known_by_all_that_they_depend_on(world, evaluate, tmp_path):
    options = ("--samples", 4, "--teacher-samples", 0, "--metrics", "clip")
    clip = Path(shutil.copytree(world / "clip", tmp_path / "clip"))
    first = evaluate(*options, "--clip-model", clip)
    settings = json.loads((clip / "preprocessor_config.json").read_text())
    (clip / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.9, 0.5]}))
    second = evaluate(*options, "--clip-model", clip)
    assert first["fingerprint"] != second["fingerprint"]
    assert first["rows"][0]["metrics"]["clip"]["value"] != second["rows"][0]["metrics"]["clip"]["value"]
    moved = Path(shutil.copytree(world / "clip", tmp_path / "elsewhere" / "clip"))
    assert evaluate(*options, "--clip-model", moved)["fingerprint"] == first["fingerprint"]


def test_images_that_are_not_finite_are_not_scored(evaluate, monkeypatch):
    monkeypatch.setattr(LoadedBase, "decode", lambda self, z: torch.full((len(z), 3, 8, 8), float("nan")))
    code, err = evaluate("--samples", 4, "--teacher-samples", 0, "--metrics", "clip")
    assert (code, "are finite" in err) == (3, True)


def test_one_prompt_has_a_figure_and_no_interval(evaluate):
    metrics = evaluate("--samples", 1, "--teacher-samples", 1)["rows"][2]["metrics"]
    assert set(metrics) == {"clip", *JUDGES}
    assert all({"low", "high"}.isdisjoint(value) for value in metrics.values())


def test_a_damaged_image_is_named_and_sampled_again(world, evaluate, rapm):
    options = ("--samples", 4, "--teacher-samples", 0, "--metrics", "clip", "--batch-size", 2)
    row = evaluate(*options)["rows"][0]
    path = sorted(Path(row["folder"]).glob("0*/*.png"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-20] + b"\0" + whole[-19:])
    code, _, err = rapm(*command(world, *options))
    assert code == 0
    assert names(err, path.parent)
    assert path.read_bytes() == whole


def test_statistics_of_the_reference_give_the_same_figure_as_its_images(world, evaluate, tmp_path):
    reference = ("--reference", world / "coco" / "val2014")
    options = ("--samples", 8, "--teacher-samples", 0, "--batch-size", 4)
    assert evaluate(*reference, "--save-reference", tmp_path / "s.safetensors")["source"].startswith("folder")
    whole = evaluate(*options, *reference, "--metrics", "fid,kid,precision,recall")["rows"][0]["metrics"]
    saved = evaluate(*options, "--reference", tmp_path / "s.safetensors", "--metrics", "fid,kid,precision,recall")
    assert {name: each["value"] for name, each in saved["rows"][0]["metrics"].items()} == {
        name: pytest.approx(each["value"], rel=1e-6) for name, each in whole.items()
    }
    code, err = evaluate(*COCO[2:], "--protocol", "dmd2-coco30k", "--reference", tmp_path / "s.safetensors")
    assert (code, "--prompts captions_coco14_test.txt" in err) == (2, True)


def test_what_cannot_be_answered_is_refused_before_an_image_is_sampled(world, evaluate, home, tmp_path, monkeypatch):
    moments_only = tmp_path / "peer.npz"
    np.savez(moments_only, mu=np.zeros(2048), sigma=np.eye(2048))
    captions = tmp_path / "captions.txt"
    captions.write_text("a cat\n")
    for options, code, words in (
        (("--metrics", "fid"), 2, "FID needs reference images"),
        (("--metrics", "kid", "--reference", moments_only), 2, "KID needs reference images"),
        (("--metrics", "fit"), 2, "fid"),
        (("--metrics", "attributes"), 2, "--base demo"),
        (("--protocol", "coco30k"), 2, "COCO's own images"),
        (("--protocol", "coco"), 2, "coco30k"),
        (("--protocol", "dmd2-coco30k", "--prompts", captions, "--reference", world / "coco"), 3, "is not the list"),
        (("--reference", tmp_path / "absent"), 2, "no folder of images"),
        (("--metrics", "recall", "--reference", world / "coco" / "val2014"), 2, "recall needs at least 6 images"),
        (("--split", "seen"), 2, "base small-sdxl"),
        (("--samples", 0), 2, "--samples"),
        (("--metrics", "fidelity", "--teacher-samples", 0), 2, "fidelity"),
        (("--samples", -2), 2, "--samples"),
        (("--prompts", captions, "--samples", 2), 2, captions.name),
        (("--metrics", "fid", "--reference", moments_only, "--inception", tmp_path / "absent.pth"), 4, "https"),
    ):
        found, err = evaluate("--samples", 4, *options) if "--samples" not in options else evaluate(*options)
        assert (found, words in err) == (code, True), (options, err)
    assert not (home / "cache" / "galleries").exists()


def test_the_peers_statistics_are_taken_with_a_word_on_what_they_do_not_say(world, evaluate, tmp_path):
    np.savez(tmp_path / "peer.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    record = evaluate("--samples", 4, "--teacher-samples", 0, "--metrics", "fid", "--reference", tmp_path / "peer.npz")
    assert "unknown network" in record["reference"]["inception"]["made"]
    np.savez(tmp_path / "peer.npz", mu=np.zeros(64), sigma=np.eye(64))
    code, err = evaluate(
        "--samples", 4, "--teacher-samples", 0, "--metrics", "fid", "--reference", tmp_path / "peer.npz"
    )
    assert (code, "were made differently" in err) == (3, True)


def test_galleries_are_listed_and_pruned(evaluate, rapm):
    options = ("--samples", 4, "--teacher-samples", 4, "--metrics", "clip")
    record = evaluate(*options)
    listed = json.loads(rapm("inspect", "cache", "--json")[1])["galleries"]
    assert {entry["path"] for entry in listed} == {row["folder"] for row in record["rows"]}
    assert rapm("inspect", "cache", "--prune", "--yes")[0] == 0
    assert not any(Path(row["folder"]).exists() for row in record["rows"])
    again = evaluate(*options)
    assert [row["metrics"] for row in again["rows"]] == [row["metrics"] for row in record["rows"]]

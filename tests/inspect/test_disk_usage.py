"""`rapm inspect cache`: what is on the disk."""

import json
import shutil
from datetime import datetime

from rapm_cli.bases import BASES
from tests.inspect.conftest import PRUNE, contents, size_of
from tests.messages import names
from tests.small_demo import DEMO


def test_the_survey_counts_every_byte_and_dates_it(rapm, run, store, home):
    code, out, err = rapm("inspect", "cache", "--json")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    (made,), (there,) = facts["trajectories"], facts["runs"]
    assert (made["path"], made["base"], made["made"], made["of"]) == (str(store), "demo", 4, 4)
    assert made["teacher"]["guidance_scale"] == 2.0
    assert (made["needed_by"], made["in_use"]) == ([], "")
    assert made["bytes"] == facts["bytes"]["trajectories"] == sum(size_of(path) for path in store.glob("0*"))
    assert facts["bytes"]["readings"] == sum(size_of(path) for path in (home / "cache" / "readings").glob("*/"))
    assert facts["readings"][0]["count"] == 3
    assert (there["name"], there["base"], there["state"]) == (run.folder.name, "demo", "finished")
    assert (there["iterations"], there["of"], there["bytes"]) == (4, 4, size_of(run.folder))
    for when in (made["last_used"], there["last_used"]):
        assert abs((datetime.now().astimezone() - datetime.fromisoformat(when)).total_seconds()) < 600
    code, out, _ = rapm("inspect", "cache")
    assert code == 0
    row = next(line for line in out.splitlines() if line.startswith(run.folder.name)).split()
    assert row[1:4] == ["demo", "finished", "4/4"]
    assert names(out, "4x2", 1, "2.0", 0, "fp32")


def test_of_an_empty_home_there_is_little_to_tell(rapm, home):
    code, out, err = rapm("inspect", "cache")
    assert (code, err) == (0, "")
    assert out.count(": none in ") == 6
    assert rapm(*PRUNE, "--yes")[0] == 0
    assert not home.exists()


def test_models_are_those_that_can_be_distilled_and_the_rest_is_summed(rapm, tmp_path, monkeypatch):
    sizes = {}
    for repo, pipeline in (("org/xl", "StableDiffusionXLPipeline"), ("org/video", "WanPipeline"), ("org/llm", None)):
        folder = tmp_path / "hub" / f"models--{repo.replace('/', '--')}"
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text("0" * 40)
        (snapshot / "weights.bin").write_bytes(bytes(1000 + len(repo)))
        if pipeline:
            (snapshot / "model_index.json").write_text(json.dumps({"_class_name": pipeline}))
        sizes[repo] = size_of(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    facts = json.loads(rapm("inspect", "cache", "--json")[1])
    (model,), (others,) = facts["models"], facts["other_models"]
    assert (model["repo"], model["bytes"]) == ("org/xl", sizes["org/xl"])
    assert (others["count"], others["bytes"]) == (2, sizes["org/video"] + sizes["org/llm"])
    assert names(rapm("inspect", "cache")[1], 2, f"{others['bytes'] / 1000:.3g} kB")
    before = contents(tmp_path / "hub")
    assert rapm(*PRUNE, "--all", "--yes")[0] == 0
    assert contents(tmp_path / "hub") == before


def test_the_pipelines_are_those_of_the_families():
    from rapm_cli.bases.families import FAMILIES
    from rapm_cli.inspect.disk_usage import PIPELINES

    assert set(PIPELINES) == {family.pipeline for family in FAMILIES.values()}


def test_a_run_called_cache_is_named_by_its_path(rapm, run, monkeypatch):
    shutil.copytree(run.folder, run.folder.parent / "cache")
    monkeypatch.chdir(run.folder.parent)
    assert json.loads(rapm("inspect", "./cache", "--json")[1])["state"] == "finished"


def test_generate_names_the_unfinished_run_whose_lora_it_lacks(rapm, unfinished, tmp_path, monkeypatch):
    monkeypatch.setitem(BASES._things, "demo", DEMO)  # whose LoRA ships
    code, _, err = rapm("generate", "a red cube at dawn", "--base", "demo", "--output", str(tmp_path))
    assert code == 0
    named = (unfinished.folder, f"rapm distill --resume {unfinished.folder.name}")
    assert names(err, *named)
    assert names(err, "LoRA", "demo")
    code, _, err = rapm("generate", "a photo of a woman")
    assert code == 4  # no base was named, and the authors' LoRA is not to be had
    assert names(err, *named)
    code, _, err = rapm("generate", "a photo of a woman", "--base", "sdxl")
    assert str(unfinished.folder) not in err

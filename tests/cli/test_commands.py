"""The commands on the demo base, with runs as short as they can be."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from rapm_cli.bases import BASES, Weights
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import DamagedError, RapmError
from rapm_cli.evaluate import contact_sheet
from rapm_cli.evaluate.chunk_cache import ChunkCache
from tests.messages import names
from tests.small_demo import use_small_demo

SHORT = [
    "--trajectories",
    "4",
    "--fine-steps",
    "2",
    "--iterations",
    "2",
    "--rank",
    "2",
    "--batch-size",
    "2",
    "--samples",
    "8",
]


@pytest.fixture(scope="module")
def distilled(tmp_path_factory, small_folder):
    """One short run of the small demo base that the tests of this file share."""
    from rapm_cli.cli.app import main

    folder = tmp_path_factory.mktemp("run") / "short"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(tmp_path_factory.mktemp("home")))
        use_small_demo(small_folder, patch)
        patch.setattr(contact_sheet, "COLUMNS", 8)
        assert main(["distill", "--base", "demo", *SHORT, "--alpha", "5", "--output", str(folder), "--quiet"]) == 0
    return folder


@pytest.fixture
def short_run(distilled, small_demo):
    """That run, where its base is `demo`."""
    return distilled


def test_distill_leaves_a_lora_a_sheet_a_log_and_a_comparison(short_run):
    assert {p.name for p in short_run.iterdir()} == {
        "commits", "lock", "lora.safetensors", "metrics.jsonl", "result.json", "sheet.png",
    }  # fmt: skip
    lines = [json.loads(line) for line in (short_run / "metrics.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [0, 1]
    assert [slot["n"] for slot in lines[0]["slots"]] == [3, 2, 1, 0]
    rows = json.loads((short_run / "result.json").read_text())["comparison"]["rows"]
    assert [row["evaluations"] for row in rows] == [16, 4, 4]
    assert _size(short_run / "sheet.png")[0] > 8 * 128


@pytest.mark.slow
def test_distill_finds_its_trajectories_again(rapm, home):
    argv = ["distill", "--base", "demo", *SHORT, "--samples", "0"]
    code, out, err = rapm(*argv)
    assert code == 0
    assert str(home / "cache" / "trajectories") not in err
    assert "rapm generate" in out
    code, _, err = rapm(*argv, "--learning-rate", "1e-4")
    assert code == 0
    assert names(err, 4, "trajectories")
    assert len(list((home / "cache" / "trajectories").iterdir())) == 1
    logs = list((home / "data" / "runs").glob("*/metrics.jsonl"))
    assert len(logs) == 2
    slots = [slot for log in logs for line in log.read_text().splitlines() for slot in json.loads(line)["slots"]]
    assert all(len(slot["real_logits"]["relative"]) == 4 for slot in slots)


class _Seen(RapmError):
    """Stands for the end of a command whose workflow is not run."""


@pytest.fixture
def settings_of(rapm, monkeypatch, tmp_path):
    """The settings that `rapm distill` would run with."""
    prompts = tmp_path / "one.txt"
    prompts.write_text("a red cube at dawn\n")

    def settings(*argv):
        """With one prompt of the user's, because only `demo` has its own."""
        seen = {}

        def workflow(run, settings, base, **rest):
            seen.update(base=base, teacher=settings.teacher, training=settings.training, **rest)
            raise _Seen("seen")

        monkeypatch.setattr("rapm_cli.distill.distill.distill", workflow)
        code, _, err = rapm("distill", *argv, "--prompts", str(prompts))
        assert code == 1, err
        assert err.splitlines()[-1] == "error: seen"
        return seen

    return settings


def test_options_come_from_file_then_environment_then_flag(settings_of, tmp_path, monkeypatch):
    path = tmp_path / "run.toml"
    path.write_text('base = "nobody"\nrank = 3\nlearning-rate = 2e-4\nslot-weights = [1, 1, 0.5, 0.5]\n')
    monkeypatch.setenv("RAPM_BASE", "demo")
    monkeypatch.setenv("RAPM_DISTILL_ALPHA", "2.5")
    monkeypatch.setenv("RAPM_DISTILL_RANK", "7")
    training = settings_of("--config", str(path), "--rank", "1", "--quiet")["training"]
    assert (training.rank, training.alpha, training.learning_rate) == (1, 2.5, 2e-4)
    assert training.slot_weights == (1, 1, 0.5, 0.5)


def test_names_in_the_environment_that_are_no_options_change_no_setting(settings_of, monkeypatch):
    plain = settings_of("--base", "demo", "--quiet")
    for name in ("RAPM_VERSION", "RAPM_RANK", "RAPM_DISTIL_RANK", "RAPM_GENERATE_SEED"):
        monkeypatch.setenv(name, "7")
    changed = settings_of("--base", "demo", "--quiet")
    assert (changed["teacher"], changed["training"]) == (plain["teacher"], plain["training"])


def test_defaults_come_from_the_base_and_alpha_from_the_rank(settings_of, monkeypatch):
    weights = Weights(Path("nowhere"), "none")  # sdxl's are not fetched here
    monkeypatch.setitem(BASES._things, "sdxl", replace(BASES["sdxl"], locate=lambda reporter: weights))
    for name in ("demo", "sdxl"):
        default = BASES[name].defaults
        seen = settings_of("--base", name, "--quiet")
        for field in ("rank", "iterations", "batch_size", "learning_rate", "discriminator_learning_rate", "warmup"):
            assert getattr(seen["training"], field) == getattr(default, field)
        assert seen["training"].alpha == default.rank
        assert (seen["teacher"].fine_steps, seen["teacher"].guidance_scale) == (10, default.guidance_scale)
    assert settings_of("--base", "demo", "--rank", "3", "--quiet")["training"].alpha == 3


def test_json_is_the_only_thing_on_stdout(rapm, short_run, tmp_path):
    code, out, err = rapm("inspect", str(short_run), "--json")
    facts = json.loads(out)["lora"]
    assert code == 0
    assert err == ""
    assert (facts["rank"], facts["alpha"], facts["scale"]) == (2, 2.0, 1.0)  # the strength is in B
    assert facts["recipe"]["sampler"]["timesteps"] == [999, 749, 499, 249]
    assert facts["parameters"] == sum(v.numel() for v in _tensors(short_run / "lora.safetensors").values())
    code, out, err = rapm(
        "generate", "a red cube at dawn", "--lora", str(short_run), "--output", str(tmp_path), "--json"
    )
    assert code == 0
    assert json.loads(out)[0]["seed"] == 0
    assert err == ""


def _tensors(path):
    from safetensors.torch import load_file

    return load_file(path)


def _pixels(path):
    import numpy as np

    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).int()


def _size(path):
    with Image.open(path) as image:
        return image.size


def _recipe_text(path):
    with Image.open(path) as image:
        return image.info["rapm"]


def test_seeds_count_up_and_do_not_depend_on_the_batch(rapm, short_run, tmp_path):
    base = ["generate", "a red cube left of a blue sphere at noon", "--lora", str(short_run)]
    assert rapm(*base, "--seed", "7", "--num-images", "3", "--output", str(tmp_path / "a"))[0] == 0
    assert rapm(*base, "--seed", "8", "--batch-size", "1", "--output", str(tmp_path / "b"))[0] == 0
    assert rapm(*base, "--seed", "7..9", "--batch-size", "2", "--output", str(tmp_path / "c"), "--grid")[0] == 0
    one, again = _pixels(tmp_path / "a" / "000-seed8.png"), _pixels(tmp_path / "b" / "000-seed8.png")
    assert (one - again).abs().max() <= 1
    assert (one - _pixels(tmp_path / "a" / "000-seed7.png")).abs().max() > 10
    for seed in (7, 8, 9):
        name = f"000-seed{seed}.png"
        assert (_pixels(tmp_path / "a" / name) - _pixels(tmp_path / "c" / name)).abs().max() <= 1
    assert _size(tmp_path / "c" / "grid.png")[0] > 3 * 128


def test_an_image_can_be_made_again_from_itself(rapm, short_run, tmp_path):
    prompt = "a green ring in the snow"
    assert rapm("generate", prompt, "--seed", "3", "--lora", str(short_run), "--output", str(tmp_path / "a"))[0] == 0
    first = tmp_path / "a" / "000-seed3.png"
    text = json.loads(_recipe_text(first))
    assert (text["prompt"], text["seed"], text["steps"], text["base"]) == (prompt, 3, 4, "demo")
    assert str(short_run) not in _recipe_text(first)
    code, _, err = rapm("generate", "--from", str(first), "--output", str(tmp_path / "b"))
    assert code == 3
    assert text["lora_sha256"] in err
    argv = ["generate", "--from", str(first), "--lora", str(short_run), "--output", str(tmp_path / "b")]
    assert rapm(*argv)[0] == 0
    assert torch.equal(_pixels(first), _pixels(tmp_path / "b" / "000-seed3.png"))
    code, _, err = rapm("generate", "--from", str(first), "another prompt", "--output", str(tmp_path / "b"))
    assert code == 2
    assert "--from" in err


def test_compare_puts_the_teacher_beside_the_student(rapm, short_run, tmp_path):
    code, out, _ = rapm(
        "generate", "a red cone at dusk", "--lora", str(short_run), "--compare", "--output", str(tmp_path)
    )
    assert code == 0
    assert "teacher" in out
    width, height = _size(tmp_path / "000-seed0-compare.png")
    assert (width, height > 128) == (262, True)  # titles above the images


def test_prompts_come_from_files_and_standard_input(rapm, short_run, tmp_path, monkeypatch):
    import io
    import types

    path = tmp_path / "prompts.txt"
    path.write_text("a red cube at dawn\n\na blue ring at noon\n")
    argv = ["generate", "--lora", str(short_run), "--output"]
    code, out, _ = rapm(*argv, str(tmp_path / "a"), "--prompts", str(path))
    assert code == 0
    assert len(out.splitlines()) == 2
    stdin = types.SimpleNamespace(buffer=io.BytesIO(path.read_bytes()), isatty=lambda: False)
    monkeypatch.setattr("sys.stdin", stdin)
    assert rapm(*argv, str(tmp_path / "b"))[0] == 0
    for name in ("000-seed0.png", "001-seed0.png"):
        assert torch.equal(_pixels(tmp_path / "a" / name), _pixels(tmp_path / "b" / name))


def test_unknown_words_are_named_once_and_the_image_is_made(rapm, short_run, tmp_path):
    argv = ["generate", "a photo of a woman", "a woman in Paris", "--lora", str(short_run), "--output", str(tmp_path)]
    code, out, err = rapm(*argv)
    assert code == 0
    assert len(out.splitlines()) == 2
    assert err.count("woman") == 1
    assert names(err, "woman", "sphere")


def test_what_a_prompt_says_beyond_the_last_token_is_named(rapm, short_run, tmp_path):
    filler = " and".join([" a red cube"] * 12)
    argv = ["generate", f"a cube{filler} left of a blue ring", "a cube", "--lora", str(short_run)]
    code, _, err = rapm(*argv, "--output", str(tmp_path))
    assert code == 0
    (line,) = (line for line in err.splitlines() if line.startswith("warning: "))
    assert names(line, 1, 2)
    assert line.endswith("left of a blue ring")


def test_markup_and_escapes_in_prompts_are_text(rapm, short_run, tmp_path):
    argv = ["generate", "[red]a cube[/red] [link=x]", "--lora", str(short_run), "--output", str(tmp_path), "--json"]
    code, out, err = rapm(*argv)
    assert code == 0
    assert json.loads(out)[0]["prompt"] == "[red]a cube[/red] [link=x]"
    assert "\x1b" not in err


def test_a_compared_image_is_made_again_with_its_teacher(rapm, short_run, tmp_path):
    argv = ["--lora", str(short_run), "--output", str(tmp_path)]
    assert rapm("generate", "a red cone at dusk", "--compare", *argv)[0] == 0
    first, again = tmp_path / "000-seed0-compare.png", tmp_path / "000-seed0-compare-1.png"
    assert rapm("generate", "--from", str(first), *argv)[0] == 0
    assert torch.equal(_pixels(first), _pixels(again))


def test_a_run_in_a_folder_of_the_users_is_among_the_runs(home, tmp_path, short_run):
    from rapm_cli.runs.run import new_run, newest_run_with_lora

    run = new_run("demo", tmp_path / "mine")
    assert newest_run_with_lora() is None
    run.lora.write_bytes((short_run / "lora.safetensors").read_bytes())
    found = newest_run_with_lora("demo")
    assert found is not None
    assert found.folder == (tmp_path / "mine").resolve()
    assert newest_run_with_lora("sdxl") is None


def test_a_lora_of_other_weights_is_used_with_a_warning(rapm, short_run, tmp_path):
    from dataclasses import replace

    from rapm_cli.formats.lora import load_lora, save_lora

    lora = load_lora(short_run / "lora.safetensors")
    path = tmp_path / "older.safetensors"
    save_lora(path, replace(lora, recipe=lora.recipe | {"base_identity": "0123"}))
    code, _, err = rapm("generate", "a red cube at dawn", "--lora", str(path), "--output", str(tmp_path))
    assert code == 0
    assert names(err, "warning:", "weights", "demo")


def test_other_steps_than_the_loras_are_sampled_with_a_warning(rapm, short_run, tmp_path):
    argv = ["generate", "a red cube at dawn", "--lora", str(short_run), "--output", str(tmp_path)]
    code, out, err = rapm(*argv, "--steps", "2")
    assert code == 0
    assert names(err, "warning:", 4, 2)
    assert "000-seed0.png" in out
    assert "warning" not in rapm(*argv, "--steps", "4")[2]


def test_a_named_base_takes_its_own_newest_run(rapm, short_run, home, tmp_path):
    import shutil
    from dataclasses import replace

    from rapm_cli.formats.lora import load_lora, save_lora

    runs = home / "data" / "runs"
    shutil.copytree(short_run, runs / "ours")
    newer = runs / "newer" / "lora.safetensors"
    save_lora(newer, replace(load_lora(short_run / "lora.safetensors"), recipe={"base": "elsewhere"}))
    os.utime(newer, (4e9, 4e9))
    code, _, err = rapm("generate", "a red cube at dawn", "--base", "demo", "--output", str(tmp_path))
    assert code == 0
    assert names(err, home / "data" / "runs" / "ours")


def test_eval_refuses_half_a_teacher(rapm, short_run, tmp_path):
    from dataclasses import replace

    from rapm_cli.formats.lora import load_lora, save_lora

    path = tmp_path / "half.safetensors"
    save_lora(
        path, replace(load_lora(short_run / "lora.safetensors"), recipe={"base": "demo", "teacher": {"num_slots": 4}})
    )
    code, _, err = rapm("eval", "--base", "demo", "--lora", str(path), "--samples", "8")
    assert code == 3
    assert names(err, path, "teacher")


def test_without_a_run_the_shipped_lora_samples(rapm, tmp_path):
    code, out, err = rapm("generate", "a red cube at dawn", "--base", "demo", "--output", str(tmp_path))
    assert code == 0
    assert names(err, "LoRA", "demo")
    assert "000-seed0.png" in out


@pytest.mark.slow
def test_eval_reports_both_parts_with_intervals(rapm, short_run):
    code, out, err = rapm(
        "eval",
        "--base",
        "demo",
        "--lora",
        str(short_run),
        "--samples",
        "8",
        "--metrics",
        "attributes,fd-demo",
        "--json",
    )
    assert code == 0, err
    parts = json.loads(out)["parts"]
    assert [part["part"] for part in parts] == ["held-out scenes", "scenes that training may see"]
    for part in parts:
        assert [row["name"].split(",")[0] for row in part["rows"]] == ["teacher", "base", "student"]
        for row in part["rows"]:
            assert all(m["low"] <= m["value"] <= m["high"] for m in row["metrics"].values())


def test_teacher_images_are_read_once_and_remembered(rapm, short_run, home, monkeypatch):
    argv = [
        "eval",
        "--lora",
        str(short_run),
        "--samples",
        "8",
        "--split",
        "held-out",
        "--metrics",
        "attributes",
        "--json",
    ]
    first = json.loads(rapm(*argv)[1])["parts"]
    assert len(list((home / "cache" / "readings").glob("*/MANIFEST.json"))) == 3
    with monkeypatch.context() as patch:
        for name in ("walk_teacher", "sample_student"):
            patch.setattr(f"rapm_cli.evaluate.models.{name}", lambda *args: pytest.fail("sampled again"))
        assert json.loads(rapm(*argv)[1])["parts"] == first
    damaged = next((home / "cache" / "readings").glob("*/readings.safetensors"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    strict = ChunkCache(damaged.parent.parent, Output(quiet=True), is_strict=True)
    with pytest.raises(DamagedError, match="its sha256 differs"):
        strict.has(damaged.parent.name)
    code, out, err = rapm(*argv)
    assert code == 0
    assert f"{damaged.parent} is damaged: readings.safetensors: its sha256 differs" in err
    scores = [[row["metrics"] for row in part["rows"]] for part in (first[0], json.loads(out)["parts"][0])]
    assert scores[0] == scores[1]


def test_a_lora_of_another_base_is_refused_by_name(rapm, short_run):
    code, _, err = rapm("generate", "a red cube", "--base", "sdxl", "--lora", str(short_run))
    assert code == 3
    assert names(err, "demo", "sdxl")

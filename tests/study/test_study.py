"""Studies through the command line."""

import contextlib
import functools
import io
import json
import os
import shutil
import signal
import statistics
from pathlib import Path

import pytest
import torch

from rapm_cli.cli import completion, study_file
from rapm_cli.cli.console import Output
from rapm_cli.cli.study_file import find_study
from rapm_cli.core.common.errors import DivergedError
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.distill import loop, resolve_run
from rapm_cli.runs.lock import locked
from rapm_cli.runs.run import Run
from rapm_cli.study import runs, scores, study
from tests.forked import Forked
from tests.messages import names
from tests.small_demo import use_small_demo

SAMPLES = 8
HEAD = """
title = "Parts"
samples = 8
seeds = [0, 1]
[options]
trajectories = 4
fine-steps = 2
rank = 1
batch-size = 1
discriminator = "latent"
checkpoint-every = 1
iterations = 2
"""
ROWS = """
[[rows]]
name = "default"
[[rows]]
name = "absolute"
options = { relative-weight = 0, discriminators = "absolute", slot-weights = [1, 1, 0.5, 0.5] }
"""
TUNED = """
[[rows]]
name = "tuned"
best-of = { learning-rate = [1e-3, 4e-3] }
"""
GUIDED = """
[[rows]]
name = "guided"
teacher = { steps = 2, guidance = 2.0 }
"""
TIMES = ("seconds_per_picture", "training_seconds", "work_seconds")


@pytest.fixture(autouse=True)
def _few_pictures_are_enough(monkeypatch):
    for module, name in ((scores, "FEWEST_SAMPLES"), (study, "TUNING_SAMPLES")):
        monkeypatch.setattr(module, name, SAMPLES)


@pytest.fixture
def file(tmp_path, small_demo):
    path = tmp_path / "parts.toml"
    path.write_text(HEAD + ROWS)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory, small_folder):
    """The home and the result of a study of the small demo base that was not interrupted."""
    from rapm_cli.cli.app import main

    home, out = tmp_path_factory.mktemp("whole"), io.StringIO()
    (home / "parts.toml").write_text(HEAD + ROWS)
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setenv("RAPM_HOME", str(home / "home"))
        patch.setattr(scores, "FEWEST_SAMPLES", SAMPLES)
        use_small_demo(small_folder, patch)
        assert main(["eval", "--study", str(home / "parts.toml"), "--json"]) == 0
    return home / "home", json.loads(out.getvalue())


def untimed(record):
    """A result without what depends on the time and the place."""
    if isinstance(record, dict):
        return {name: untimed(value) for name, value in record.items() if name not in (*TIMES, "files", "source")}
    return [untimed(value) for value in record] if isinstance(record, list) else record


def no_training(monkeypatch):
    def fail(*_):
        raise AssertionError("this would train again")

    monkeypatch.setattr(Trainer, "train_step", fail)


def row_of(record, name):
    return next(row for row in record["rows"] if row["name"] == name)


@pytest.mark.slow
def test_a_table_has_the_mean_and_spread_of_what_each_run_alone_is_told(rapm, whole, small_demo, monkeypatch):
    home, record = whole
    monkeypatch.setenv("RAPM_HOME", str(home))
    assert [row["name"] for row in record["rows"]] == ["teacher", "base", "default", "absolute"]
    row, alone, closed = row_of(record, "absolute"), [], []
    for seed in row["seeds"]:
        lora = home / "data" / "studies" / "runs" / seed["run"] / "lora.safetensors"
        options = ("--samples", str(SAMPLES), "--split", "held-out", "--metrics", "attributes,pictures,fd-demo")
        got = json.loads(rapm("eval", "--base", "demo", "--lora", str(lora), *options, "--json")[1])
        teacher, base, student = ({k: s["value"] for k, s in r["metrics"].items()} for r in got["parts"][0]["rows"])
        alone.append(student)
        distances = [one["fd-demo"] for one in (teacher, base, student)]
        closed.append((distances[1] - distances[2]) / (distances[1] - distances[0]))
    alone = {metric: [one[metric] for one in alone] for metric in alone[0]} | {"closed": closed}
    for metric, values in alone.items():
        assert row["metrics"][metric]["mean"] == pytest.approx(statistics.fmean(values))
        assert row["metrics"][metric]["spread"] == pytest.approx(statistics.stdev(values))


@pytest.mark.slow
def test_evaluations_of_training_are_counted(whole):
    """In each of 2 x 4 slots the student's; with a relative target another; no features, as the latents are judged."""
    evaluations = {name: row_of(whole[1], name)["training_evaluations"] for name in ("default", "absolute")}
    assert evaluations == {"default": 16, "absolute": 8}
    assert row_of(whole[1], "default")["training_mib"] > row_of(whole[1], "absolute")["training_mib"] > 0


@pytest.mark.slow
def test_the_same_again_trains_and_samples_nothing_and_says_the_same(rapm, whole, monkeypatch, file):
    home, record = whole
    shutil.copytree(home, os.environ["RAPM_HOME"])
    no_training(monkeypatch)
    readings = sorted(path.name for path in (home / "cache" / "readings").iterdir())
    code, out, _ = rapm("eval", "--study", str(file), "--json", "--output", str(file.parent / "result"))
    got = json.loads(out)
    assert code == 0
    files = got.pop("files")
    assert got == {name: value for name, value in record.items() if name != "files"} | {"source": got["source"]}
    assert sorted(path.name for path in (file.parent / "home" / "cache" / "readings").iterdir()) == readings
    assert sorted(files) == ["report.html", "sheet.png", "study.json", "study.md"]
    assert json.loads((file.parent / "result" / "study.json").read_text()) == got
    assert "| absolute | 4 |" in (file.parent / "result" / "study.md").read_text()
    assert rapm("distill", "--resume")[0] == 3  # no run of a study is taken for the user's own


@pytest.mark.slow
def test_a_study_that_was_stopped_goes_on_to_the_same_end(rapm, whole, monkeypatch, file, home):
    shutil.copytree(whole[0], home)
    shutil.rmtree(home / "data" / "studies" / "runs" / row_of(whole[1], "absolute")["seeds"][0]["run"])
    real, taken = loop.Training._take, []

    def take(self, progress):
        taken.append(progress.iteration)
        if len(taken) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        real(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "_take", take)
        code, _, err = rapm("eval", "--study", str(file))
    assert code == 143
    assert names(err.splitlines()[-1], "stopped:", 1, 2, f"rapm eval --study {file}")
    code, out, _ = rapm("eval", "--study", str(file), "--json")
    assert code == 0
    assert untimed(json.loads(out)) == untimed(whole[1])  # with the sha256 of every LoRA
    for run in (home / "data" / "studies" / "runs").iterdir():
        assert [commit.name for commit in Run(run).checkpoint_folders()] == ["00000002"]


@pytest.mark.slow
def test_processes_share_a_study_and_wait_for_each_other_at_last(rapm, whole, monkeypatch, file, home):
    shutil.copytree(whole[0], home)
    places = [seed["run"] for name in ("default", "absolute") for seed in row_of(whole[1], name)["seeds"]]
    places = [home / "data" / "studies" / "runs" / place for place in places]
    for place in places[:3]:
        (place / "result.json").unlink()  # as if unfinished
    finished = []
    with contextlib.ExitStack() as other:
        other.enter_context(locked(places[0], Output(as_json=True, quiet=True), ""))

        def pause(seconds):
            finished.extend(place for place in places if Run(place).is_finished)
            other.close()  # the other process is done with it, or gone

        monkeypatch.setattr(runs.signals, "pause", pause)
        code, _, err = rapm("eval", "--study", str(file), "--output", str(home / "result"))
    assert code == 0
    assert finished == places[1:]
    waits = [line for line in err.splitlines() if names(line, "pid", os.getpid())]
    assert len(waits) == 1
    assert names(waits[0], places[0])
    assert untimed(json.loads((home / "result" / "study.json").read_text())) == untimed(whole[1])


@pytest.mark.slow
def test_two_processes_train_each_run_of_a_study_once(whole, file, home, small_folder):
    file.write_text(file.read_text().replace("[0, 1]", "[0]"))
    command, results = ["eval", "--study", str(file), "--output"], [home / "one", home / "two"]
    before = functools.partial(use_small_demo, small_folder)
    both = [Forked([*command, str(place)], {}, before) for place in results]
    told = [process.communicate(timeout=600) for process in both]
    assert [process.returncode for process in both] == [0, 0]
    records = [whole[1], *(json.loads((place / "study.json").read_text()) for place in results)]
    digests = [
        [[seed["lora_sha256"] for seed in row.get("seeds", [])[:1]] for row in record["rows"]] for record in records
    ]
    assert digests[0] == digests[1] == digests[2]
    trained = [line for _, err in told for line in err.splitlines() if line.startswith("training 2/2")]
    assert len(trained) == 2


@pytest.mark.slow
def test_the_best_of_several_is_chosen_with_another_seed_and_on_other_prompts(rapm, file):
    file.write_text(HEAD.replace("[0, 1]", "[0]") + TUNED + GUIDED)
    code, out, _ = rapm("eval", "--study", str(file), "--json")
    assert code == 0
    row = row_of(json.loads(out), "tuned")
    assert [one["options"] for one in row["tried"]] == [{"learning-rate": 1e-3}, {"learning-rate": 4e-3}]
    best = min(row["tried"], key=lambda one: one["fd-demo"])
    assert row["options"] == best["options"]
    assert {seed["run"] for seed in row["seeds"]}.isdisjoint(one["run"] for one in row["tried"])
    assert row["metrics"]["fd-demo"]["mean"] != best["fd-demo"]
    runs = file.parent / "home" / "data" / "studies" / "runs"
    for one in row["tried"][:1]:
        options = ("--samples", str(SAMPLES), "--split", "held-out", "--metrics", "fd-demo", "--seed", "1", "--json")
        alone = json.loads(rapm("eval", "--lora", str(runs / one["run"]), *options)[1])
        assert alone["parts"][0]["rows"][2]["metrics"]["fd-demo"]["value"] == pytest.approx(one["fd-demo"])
    guided = row_of(json.loads(out), "guided")
    assert (guided["evaluations"], guided["seeds"]) == (4, [])


@pytest.mark.slow
def test_a_row_that_diverges_is_shown_and_the_others_go_on(rapm, file, monkeypatch):
    real = runs.distill

    def distill(run, settings, *arguments, **options):
        with monkeypatch.context() as patch:
            if settings.training.relative_weight == 0:
                patch.setattr(Trainer, "train_step", fail)
            return real(run, settings, *arguments, **options)

    def fail(*_):
        raise DivergedError("training diverged: so it is", "")

    monkeypatch.setattr(runs, "distill", distill)
    file.write_text(HEAD.replace("[0, 1]", "[0]") + ROWS + GUIDED)
    code, out, err = rapm("eval", "--study", str(file))
    assert code == 0
    assert names(err, "warning:", "absolute", 0, "so it is")
    assert names(out, "absolute", "so it is")
    no_training(monkeypatch)  # that it diverges is remembered, too
    record = json.loads(rapm("eval", "--study", str(file), "--json")[1])
    assert row_of(record, "absolute")["metrics"] == {}
    assert row_of(record, "guided")["metrics"]["closed"]["mean"] > 0


def test_a_shipped_study_is_found_by_its_name(rapm, tmp_path, monkeypatch):
    monkeypatch.setattr(completion, "STUDIES", tmp_path)
    (tmp_path / "good.toml").write_text("rows = []")
    code, _, err = rapm("eval", "--study", "good")
    assert (code, f"{tmp_path}/good.toml: " in err) == (2, True)
    code, _, err = rapm("eval", "--study", "other")
    assert code == 3
    assert "'other'" in err
    assert err.rstrip().endswith(": good")


@pytest.mark.parametrize("path", sorted(completion.STUDIES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_way_of_a_shipped_study_can_be_distilled(path):
    out = Output(quiet=True)
    table = study_file.read_study(path, out)
    ways = [variant for row in table.rows for variant in row.variants]
    settled = [
        resolve_run.settings_without_weights(
            table.base, way.given | {"seed": seed, "samples": 0}, None, torch.device("cpu"), out
        )
        for way in ways
        for seed in table.seeds
    ]
    assert len({made.fingerprint + str(made.training.iterations) for made in settled}) == len(settled) > 0


BAD = {  # a line of a file, the exit code, and what the error names
    "title =": (3, "is not TOML"),
    "titel = 'x'": (2, "unknown key 'titel'; did you mean 'title'?"),
    "samples = '8'": (2, ": samples: "),
    "samples = 4": (2, "samples = 4"),
    "seeds = []": (2, ": seeds: "),
    "seeds = [1, 1]": (2, "seed 1 comes twice"),
    "rows = []": (2, ": rows: "),
    "part = 'both'": (2, "'held-out' or 'seen'"),
    "eval-seed = -1": (2, ": eval-seed: "),
    "base = 'nothing'": (2, "nothing"),
    "options = { rnak = 1 }": (2, "[options]: the study has an unknown key 'rnak'; did you mean 'rank'?"),
    "options = { seed = 1 }": (2, "[options]: the study has an unknown key 'seed'"),
    "options = { rank = 0 }": (2, "--rank 0"),
    "rows = [{ options = { rank = 1 } }]": (2, "rows 1 name: "),
    "rows = [{ name = 'a' }, { name = 'a' }]": (2, "row 'a' comes twice"),
    "rows = [{ name = 'base' }]": (2, "row 'base' comes twice"),
    "rows = [{ name = 'a', option = {} }]": (2, "rows 1 option: "),
    "rows = [{ name = 'a', options = { output = 'x' } }]": (2, "row 'a': the study has an unknown key 'output'"),
    "rows = [{ name = 'a', options = { rank = 1.5 } }]": (2, "row 'a': --rank 1.5"),
    "rows = [{ name = 'a', options = { rank = [1] } }, { name = 'b', options = { steps = 3 } }]": (
        2,
        "row 'a': --rank",
    ),
    "rows = [{ name = 'a' }, { name = 'b', options = { steps = 3 } }]": (2, "row 'b': 3 steps"),
    "rows = [{ name = 'a', options = { slot-weights = 'x' } }]": (2, "row 'a': --slot-weights 'x'"),
    "rows = [{ name = 'a', options = { compile = 1 } }]": (2, "row 'a': --compile 1"),
    "rows = [{ name = 'a', options = { precision = 'bf16' } }]": (2, "row 'a': precision"),
    "options = { precision = [1] }": (2, "--precision"),
    "rows = [{ name = 'a', best-of = { rank = 2 } }]": (2, "rows 1 best-of rank: "),
    "rows = [{ name = 'a', best-of = { rank = [2, 0] } }]": (2, "row 'a': --rank 0"),
    "rows = [{ name = 'a', teacher = { guidance = 2 } }]": (2, "rows 1 teacher steps: "),
    "rows = [{ name = 'a', teacher = { steps = '4' } }]": (2, "rows 1 teacher steps: "),
    "rows = [{ name = 'a', teacher = { steps = 3 } }]": (2, "row 'a': 3 steps"),
    "rows = [{ name = 'a', teacher = { steps = 4, sampler = 'lmc' } }]": (2, "row 'a': no sampler is called 'lmc'"),
    "rows = [{ name = 'a', teacher = { steps = 4, guidance = 2, sampler = 'lcm' } }]": (2, "row 'a': sampler lcm"),
    "rows = [{ name = 'a', teacher = { steps = 3, guidance = 2 } }]": (2, "row 'a': 3 steps"),
    "rows = [{ name = 'a', teacher = { steps = 4, guidance = 99 } }]": (2, "row 'a': guidance 99"),
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_refused_before_any_work(rapm, tmp_path, home, text):
    path, lines = tmp_path / "bad.toml", {"seeds": "seeds = [0]", "rows": "rows = [{ name = 'good' }]"}
    lines[text.split(" ")[0]] = text
    path.write_text("\n".join(lines.values()))
    code, out, err = rapm("eval", "--study", str(path))
    wanted, named = BAD[text]
    assert (code, out) == (wanted, "")
    last = err.splitlines()[-1]
    assert last.startswith("error: ")
    assert names(last, path, *named.split())
    assert not home.exists()


def test_seeds_may_not_be_missing(rapm, tmp_path):
    path = tmp_path / "bad.toml"
    path.write_text("rows = [{ name = 'good' }]")
    assert ": seeds: " in rapm("eval", "--study", str(path))[2]


def test_where_the_results_cannot_go_nothing_is_begun(rapm, file, home, monkeypatch):
    monkeypatch.setattr(study, "run_study", lambda *_: pytest.fail("this would work for hours"))
    (file.parent / "taken").write_text("mine")
    code, _, err = rapm("eval", "--study", str(file), "--output", str(file.parent / "taken"))
    assert (code, names(err, "taken")) == (5, True)
    folder = home / "data" / "studies" / file.stem
    folder.mkdir(parents=True)
    (folder / "study.json").write_text('{"source": {"place": "another", "content": "other"}}')
    code, _, err = rapm("eval", "--study", str(file))
    assert (code, names(err, folder)) == (2, True)


def test_a_name_that_ships_means_what_ships(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "default").mkdir()
    assert find_study("default").parent == completion.STUDIES
    assert find_study("./default") == Path("default")


@pytest.mark.parametrize("options", [["--lora", "x"], ["--base", "demo"], ["--benchmark"], ["--samples", "640"]])
def test_a_study_sets_what_is_measured_by_itself(rapm, file, options):
    code, _, err = rapm("eval", "--study", str(file), *options)
    assert code == 2
    assert names(err, "error:", options[0], "--study")

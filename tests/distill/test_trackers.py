"""Trackers: one contract for all, with stand-ins for the libraries; the real ones where they are installed."""

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from rapm_cli.core.common.errors import ConfigError
from rapm_cli.distill import trackers
from rapm_cli.distill.trackers import TRACKERS, Trackers, check_trackers, flatten
from tests.messages import naming

PICTURE = Image.new("RGB", (4, 4), (255, 0, 0))
SETTINGS = {"base": "demo", "training": {"rank": 4}}


class Reporter:
    """Remembers what is said."""

    def __init__(self):
        self.said, self.warned = [], []

    def say(self, line):
        self.said.append(line)

    def warn(self, line):
        self.warned.append(line)


class StandIns:
    """The libraries, as far as they are used: `seen` holds what reaches each as (iteration, name, value)."""

    def __init__(self, monkeypatch):
        self.seen = {name: [] for name in TRACKERS.names()}
        self.begun = {name: [] for name in TRACKERS.names()}
        self.closed = dict.fromkeys(TRACKERS.names(), 0)
        self.mode = "online"
        self.api_key = None
        for name, parts in {
            "tensorboard": {},
            "torch.utils.tensorboard": {"SummaryWriter": self._writer},
            "wandb": {
                "setup": self._setup,
                "login": lambda prompt, verify: bool(self.api_key),
                "init": self._wandb,
                "Settings": dict,
                "Image": lambda image: image,
            },
            "trackio": {"init": self._trackio, "finish": lambda: self._close("trackio"), "Image": lambda image: image},
        }.items():
            module = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None, origin="a stand-in")
            vars(module).update(parts)
            monkeypatch.setitem(sys.modules, name, module)

    def _close(self, name):
        self.closed[name] += 1

    def _log(self, name, iteration, values):
        self.seen[name] += [(iteration, key, value) for key, value in values.items()]

    def _writer(self, folder, purge_step):
        self.begun["tensorboard"].append({"dir": folder, "purge_step": purge_step})
        return SimpleNamespace(
            add_text=lambda name, text, global_step: None,
            add_scalar=lambda name, value, global_step: self._log("tensorboard", global_step, {name: value}),
            add_images=lambda name, value, global_step, dataformats: self._log(
                "tensorboard", global_step, {name: value[0]}
            ),
            flush=lambda: None,
            close=lambda: self._close("tensorboard"),
        )

    def _setup(self, settings):
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode, project=None))

    def _wandb(self, **given):
        self.begun["wandb"].append(given)

        def log(values, step=None):
            values = {name: value[0] if isinstance(value, list) else value for name, value in values.items()}
            self._log("wandb", values.pop("iteration"), values)

        return SimpleNamespace(
            url="https://wandb.ai/me/rapm/runs/1",
            define_metric=lambda name, **how: None,
            log=log,
            finish=lambda: self._close("wandb"),
        )

    def _trackio(self, **given):
        sys.stdout.write("* Trackio project initialized\n")
        self.begun["trackio"].append(given)
        return SimpleNamespace(log=lambda values, step: self._log("trackio", step, values))


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """Stand-ins for all libraries, and a user without keys."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("NETRC", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return StandIns(monkeypatch)


@pytest.fixture
def reporter():
    return Reporter()


@pytest.mark.parametrize("name", TRACKERS.names())
def test_every_tracker_hands_on_scalars_and_pictures_and_prints_nothing(name, libraries, reporter, tmp_path, capsys):
    tracker = Trackers([name, name], tmp_path, "run", SETTINGS, reporter)
    tracker.log(0, {"a": 1.0, "b/c": 2.0})
    tracker.show(0, PICTURE)
    tracker.close()
    tracker.close()
    *scalars, (iteration, title, picture) = libraries.seen[name]
    assert scalars == [(0, "a", 1.0), (0, "b/c", 2.0)]
    assert (iteration, title, picture.tobytes()) == (0, "preview", PICTURE.tobytes())
    assert libraries.closed[name] == 1
    assert [line.split(":")[0] for line in reporter.said] == [name]
    assert reporter.warned == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("name", TRACKERS.names())
def test_a_tracker_that_fails_is_dropped_with_one_warning_and_the_others_go_on(name, libraries, reporter, tmp_path):
    def fail(*args, **named):
        raise OSError("the disk is full\nand more")

    opened = Trackers(TRACKERS.names(), tmp_path, "run", SETTINGS, reporter)
    opened.log(0, {"a": 1.0})
    opened._open[name].log = fail
    opened.log(1, {"a": 2.0})
    opened.log(2, {"a": 3.0})
    (warned,) = reporter.warned
    assert name in warned
    assert warned.endswith("the disk is full")
    for other, seen in libraries.seen.items():
        assert [iteration for iteration, *_ in seen] == ([0] if other == name else [0, 1, 2])


@pytest.mark.parametrize("name", TRACKERS.names())
def test_a_tracker_that_cannot_begin_is_left_out(name, libraries, reporter, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise RuntimeError("no")

    for method in ("_writer", "_wandb", "_trackio"):
        monkeypatch.setattr(StandIns, method, fail)
    StandIns(monkeypatch)
    opened = Trackers([name], tmp_path, "run", SETTINGS, reporter)
    opened.log(0, {"a": 1.0})
    opened.log(1, {"a": 1.0})
    opened.close()
    (warned,) = reporter.warned
    assert name in warned


def test_unknown_and_missing_trackers_are_refused_with_the_command_that_helps(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match=naming("tensorbord")) as caught:
        check_trackers(["tensorbord"])
    assert "tensorboard" in caught.value.remedy
    (tmp_path / "trackio").mkdir()  # a folder that looks like a package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    for name in TRACKERS.names():
        monkeypatch.delitem(sys.modules, name, raising=False)
        with pytest.raises(ConfigError, match=naming(name)) as caught:
            check_trackers([name])
        assert caught.value.remedy == f"pip install {name}"


def test_wandb_is_offline_without_a_key_and_says_so(libraries, reporter, tmp_path):
    Trackers(["wandb"], tmp_path, "run", SETTINGS, reporter).log(0, {"a": 1.0})
    assert libraries.begun["wandb"][0]["mode"] == "offline"
    assert "API key" in reporter.said[0]
    assert "wandb sync" in reporter.said[0]


def test_wandb_is_online_with_a_key(libraries, reporter, tmp_path):
    libraries.api_key = "k" * 40
    Trackers(["wandb"], tmp_path, "run", SETTINGS, reporter).log(0, {"a": 1.0})
    assert (libraries.begun["wandb"][0]["mode"], libraries.begun["wandb"][0]["resume"]) == ("online", "allow")
    assert reporter.said == ["wandb: https://wandb.ai/me/rapm/runs/1"]


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_wandb_keeps_to_the_users_mode(libraries, reporter, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    libraries.mode, libraries.api_key = mode, "k" * 40
    Trackers(["wandb"], tmp_path, "run", SETTINGS, reporter).log(0, {"a": 1.0})
    assert libraries.begun["wandb"][0]["mode"] == mode


def test_wandb_asks_for_no_login_where_the_user_wants_it_online(libraries, reporter, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    Trackers(["wandb"], tmp_path, "run", SETTINGS, reporter).log(0, {"a": 1.0})
    assert libraries.begun["wandb"] == []
    (warned,) = reporter.warned
    assert "WANDB_MODE" in warned
    assert "wandb login" in warned


def test_a_resumed_run_goes_on_with_the_same_record(libraries, reporter, tmp_path):
    for first in (0, 2):
        opened = Trackers(TRACKERS.names(), tmp_path, "run", SETTINGS, reporter)
        opened.log(first, {"a": 1.0})
        opened.close()
    assert [begun["purge_step"] for begun in libraries.begun["tensorboard"]] == [0, 2]
    once, again = libraries.begun["wandb"]
    assert once["id"] == again["id"]
    assert [(begun["name"], begun["resume"]) for begun in libraries.begun["trackio"]] == [("run", "allow")] * 2
    other = tmp_path / "other"
    other.mkdir()
    Trackers(["wandb"], other, "run", SETTINGS, reporter).log(0, {"a": 1.0})
    assert libraries.begun["wandb"][2]["id"] != once["id"]


def test_iterations_that_training_repeats_take_the_place_of_those_before(libraries, reporter, tmp_path):
    opened = Trackers(["tensorboard"], tmp_path, "run", SETTINGS, reporter)
    for iteration in (0, 1, 2, 1, 2):
        opened.log(iteration, {"a": 1.0})
    assert [begun["purge_step"] for begun in libraries.begun["tensorboard"]] == [0, 1]


def test_lines_of_the_log_become_scalars():
    slot = {
        "n": 3,
        "skipped": "",
        "distance": {"relative": 0.25, "absolute": None},
        "adversarial": {"relative": 1.5},
        "discriminator": {"relative": 2.0},
        "real_logits": {"relative": [1.0, 3.0]},
        "fake_logits": {"relative": [1.0, None]},
    }
    line = {"iteration": 7, "learning_rate": 0.5, "slots": [slot]}
    assert flatten(line) == {
        "learning_rate": 0.5,
        "skipped": 0.0,
        "slot3/relative": 0.25,
        "slot3/adversarial_relative": 1.5,
        "slot3/discriminator_relative": 2.0,
        "slot3/logits_real_relative": 2.0,
    }
    assert flatten(line | {"skipped": "loss", "trajectories": [1]})["skipped"] == 1.0
    assert flatten({"went_back": {"from": 5, "to": 2}}) == {}


RECORD = """
import json, sys
from pathlib import Path
from PIL import Image
from rapm_cli.distill.trackers import Trackers
class Reporter:
    def say(self, line): pass
    def warn(self, line): print(line, file=sys.stderr)
for first in (0, 2):
    opened = Trackers([sys.argv[1]], Path(sys.argv[2]), "run", {"rank": 4}, Reporter())
    for k in (first, first + 1, first + 2):
        opened.log(k, {"slot3/absolute": k / 4 + first})
    opened.show(first + 2, Image.new("RGB", (4, 4)))
    opened.close()
"""


def record(name: str, folder: Path) -> None:
    """A run and its continuation from iteration 2, in a process of its own with a word that must not be kept."""
    pytest.importorskip(name)
    argv = [sys.executable, "-c", RECORD, name, str(folder), "hf_neverkeepthiswordofmine"]
    done = subprocess.run(argv, capture_output=True, text=True, env=clean_environment(folder))
    assert (done.returncode, done.stdout) == (0, "")
    assert "left out" not in done.stderr
    kept = [path for path in folder.rglob("*") if path.is_file() and b"neverkeepthis" in path.read_bytes()]
    assert kept == []


def clean_environment(folder: Path) -> dict[str, str]:
    """Without keys, and with a home of its own."""
    import os

    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO", "NETRC"))}
    return kept | {"HOME": str(folder / "home"), "PYTHONPATH": str(Path(trackers.__file__).parents[2])}


@pytest.mark.slow
def test_tensorboard_reads_what_was_written(tmp_path):
    record("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = [(event.step, event.value) for event in events.Scalars("slot3/absolute")]
    assert scalars == [(0, 0), (1, 0.25), (2, 2.5), (3, 2.75), (4, 3)]
    assert [event.step for event in events.Images("preview")] == [4]


@pytest.mark.slow
def test_wandb_leaves_an_offline_run_to_upload(tmp_path):
    record("wandb", tmp_path)
    parts = sorted((tmp_path / "wandb").glob("offline-run-*"))
    # offline-run-TIME-ID, and one more number where both parts began in one second
    assert {part.name.split("-")[3] for part in parts} == {(tmp_path / "wandb" / "run-id").read_text()}
    files = [path.read_bytes() for part in parts for path in part.glob("*.wandb")]
    assert sum(file.count(b"slot3/absolute") for file in files) >= 6
    for private in (str(tmp_path), sys.executable):
        assert not any(private.encode() in file for file in files)


@pytest.mark.slow
def test_trackio_keeps_one_run_in_the_run_folder(tmp_path):
    record("trackio", tmp_path)
    import sqlite3

    with sqlite3.connect(tmp_path / "trackio" / "rapm.db") as database:
        rows = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    scalars = [(name, step, json.loads(text).get("slot3/absolute")) for name, step, text in rows]
    assert [row for row in scalars if row[2] is not None] == [
        ("run", 0, 0), ("run", 1, 0.25), ("run", 2, 0.5), ("run", 2, 2.5), ("run", 3, 2.75), ("run", 4, 3),
    ]  # fmt: skip

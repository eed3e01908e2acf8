"""Previews and trackers in a whole run: they see everything, and change nothing."""

import contextlib
import io
import json
import shutil
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType

import pytest
import torch
from PIL import Image

from rapm_cli.bases import BASES
from rapm_cli.cli.app import main
from rapm_cli.cli.console import Output
from rapm_cli.distill.previews import COLUMNS, Previews
from rapm_cli.distill.resolve_run import settings_without_weights
from rapm_cli.distill.trackers import TRACKERS
from rapm_cli.evaluate import contact_sheet
from rapm_cli.evaluate.contact_sheet import Scenes
from rapm_cli.runs.settings import Settings
from tests.small_demo import use_small_demo

TINY = (
    *("--trajectories", "2", "--fine-steps", "2", "--rank", "1", "--batch-size", "1", "--samples", "0"),
    *("--discriminator", "latent", "--checkpoint-every", "2", "--iterations", "2"),
)
DISTILL = ["distill", "--base", "demo", *TINY]


class Recorder:
    """A tracker that remembers, as accelerate's are."""

    made = of_seen = None

    def __init__(self, folder, name, recipe):
        self.folder, self.recipe, self.logged, self.shown, self.is_closed = folder, recipe, [], [], False
        Recorder.made = self

    def log(self, values, step):
        self.logged.append((step, values))

    def log_images(self, values, step):
        self.shown += [(step, pixels[0]) for pixels in values.values()]

    def finish(self):
        self.is_closed = True


@pytest.fixture
def recorder(monkeypatch):
    """The name of a tracker that is registered and installed for one test."""
    install(monkeypatch)
    return "recorder"


def install(monkeypatch):
    module = ModuleType("recorder")
    module.__spec__ = ModuleSpec("recorder", None, origin="a stand-in")
    monkeypatch.setitem(sys.modules, "recorder", module)
    monkeypatch.setitem(TRACKERS._things, "recorder", lambda *run: (Recorder(*run[:-1]), "ask it"))


@pytest.fixture(scope="module")
def shared(tmp_path_factory, small_folder):
    """A home with a run, `plain`, and the same with previews and a tracker, `seen`; `out` is what the second said."""
    folder = tmp_path_factory.mktemp("shared")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(folder / "home"))
        patch.setattr(contact_sheet, "COLUMNS", COLUMNS)
        use_small_demo(small_folder, patch)
        install(patch)
        assert main([*DISTILL, "--output", str(folder / "plain"), "--quiet"]) == 0
        more = ["--preview-every", "1", "--report-to", "recorder", "--json"]
        with (folder / "out").open("w") as out, contextlib.redirect_stdout(out):
            assert main([*DISTILL, "--output", str(folder / "seen"), *more]) == 0
        Recorder.of_seen = Recorder.made
    return folder


@pytest.fixture
def home(shared, small_demo, monkeypatch):
    """The shared one, whose trajectories every run finds."""
    monkeypatch.setenv("RAPM_HOME", str(shared / "home"))


def test_previews_and_trackers_change_no_bit_of_a_run(shared):
    plain, seen = shared / "plain", shared / "seen"
    for name in ("lora.safetensors", "metrics.jsonl", "sheet.png"):
        assert (seen / name).read_bytes() == (plain / name).read_bytes(), name
    assert not (plain / "previews").exists()
    assert [path.name for path in sorted((seen / "previews").iterdir())] == ["00000001.png", "00000002.png"]


def test_a_tracker_gets_every_iteration_as_the_log_has_it_and_the_previews(shared):
    folder, made = shared / "seen", Recorder.of_seen
    assert json.loads((shared / "out").read_text())["run"] == str(folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert made.folder == folder
    assert "prompts" not in json.dumps(made.recipe)
    assert [iteration for iteration, _ in made.logged] == [0, 1]
    for line, (_, values) in zip(lines, made.logged, strict=True):
        assert values["slot3/absolute"] == line["slots"][0]["distance"]["absolute"]
        assert values["learning_rate"] == line["learning_rate"]
    assert [iteration for iteration, _ in made.shown] == [0, 1]
    for iteration, picture in made.shown:
        with Image.open(folder / "previews" / f"{iteration + 1:08d}.png") as same:
            assert picture.tobytes() == same.tobytes()
    assert made.is_closed


def test_the_last_preview_shows_what_the_final_sheet_shows(shared):
    folder = shared / "seen"
    with Image.open(folder / "previews" / "00000002.png") as last, Image.open(folder / "sheet.png") as sheet:
        width = last.width - 6
        teacher, student = crop(last, 1, width), crop(last, 0, width)
        assert is_close(teacher, crop(sheet, 2, width))
        assert is_close(student, crop(sheet, 0, width))
        assert not is_close(student, crop(sheet, 1, width))  # the base
    with Image.open(folder / "previews" / "00000001.png") as earlier:
        assert is_close(teacher, crop(earlier, 1, width))
        assert not is_close(student, crop(earlier, 0, width))


def crop(sheet, k, width):
    """Pixels of the images of row `k` from below, without its title."""
    top = sheet.height - 6 - 128 * (k + 1) - (22 + 6) * k
    box = sheet.crop((6, top, width, top + 128)).convert("RGB")
    return torch.frombuffer(bytearray(box.tobytes()), dtype=torch.uint8).int()


def is_close(one, other):
    """True where two rows differ by rounding alone: previews draw one picture at a time."""
    return one.shape == other.shape and int((one - other).abs().max()) <= 1


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("full")])
def test_a_preview_leaves_training_the_room_of_the_autoencoder(error):
    class Loaded:
        device, calls = torch.device("cpu"), []

        @property
        def backbone(self):
            return self

        def reset_graphs(self):
            self.calls.append("reset_graphs")

        def decode(self, z):
            self.calls.append("decode")
            if error:
                raise error
            return torch.zeros(1, 3, 8, 8)

        def offload(self):
            self.calls.append("rest")

    previews = Previews.__new__(Previews)
    previews._loaded, previews._num_slots, previews._title, previews._sampler = Loaded(), 4, "teacher", "ddim"
    previews._scenes = Scenes(["a cat", "a dog"], None, None)
    previews._teacher, previews._sample = torch.zeros(2, 4, 8, 8), lambda draw: torch.zeros(2, 4, 8, 8)
    with pytest.raises(torch.OutOfMemoryError) if error else contextlib.nullcontext():
        previews._sheet(1)
    assert Loaded.calls == ["reset_graphs", *(["decode"] if error else ["decode"] * 4), "rest"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    ],
)
def test_a_preview_that_cannot_be_made_stops_no_training(rapm, home, shared, tmp_path, monkeypatch, error):
    def fail(self, done):
        raise error

    monkeypatch.setattr(Previews, "_sheet", fail)
    code, _, err = rapm(*DISTILL, "--output", str(tmp_path / "run"), "--preview-every", "1")
    assert code == 0
    assert sum(line.startswith("warning: ") and "preview" in line for line in err.splitlines()) == 1
    assert (tmp_path / "run" / "lora.safetensors").read_bytes() == (shared / "plain" / "lora.safetensors").read_bytes()


def test_a_run_goes_on_whoever_is_told_of_it(rapm, home, recorder, shared, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(shared / "plain", folder)
    code, _, err = rapm("distill", "--resume", str(folder), "--iterations", "3", "--report-to", recorder)
    assert code == 0, err
    assert [iteration for iteration, _ in Recorder.made.logged] == [2]


def test_settings_keep_previews_and_trackers_when_a_run_is_resumed():
    demo, out, cpu = BASES["demo"], Output(quiet=True), torch.device("cpu")
    given = {"trajectories": 2, "iterations": 9, "report_to": ("recorder",), "preview_every": 5}
    begun = settings_without_weights(demo, given | {"preview_prompts": ("a red cube",)}, None, cpu, out)
    stored = Settings.from_bytes(begun.to_bytes())
    kept = settings_without_weights(demo, {}, None, cpu, out, stored)
    assert (kept.report_to, kept.preview_every, kept.preview_prompts) == (("recorder",), 5, ("a red cube",))
    ended = settings_without_weights(demo, {"preview_every": 0, "report_to": ()}, None, cpu, out, stored)
    assert (ended.report_to, ended.preview_every) == ((), 0)
    assert ended.fingerprint == stored.fingerprint
    older = json.loads(stored.to_bytes())
    for name in ("report_to", "preview_every", "preview_prompts"):
        del older[name]
    assert Settings.from_bytes(json.dumps(older).encode()).fingerprint == stored.fingerprint


@pytest.mark.slow
def test_a_resumed_run_keeps_its_previews_and_trackers_until_it_is_told_otherwise(
    rapm, home, recorder, shared, tmp_path
):
    folder, prompts = tmp_path / "run", tmp_path / "prompts.txt"
    shutil.copytree(shared / "plain", folder)
    prompts.write_text("a red cube at dawn\na blue ring in the snow")
    more = ["--preview-every", "1", "--preview-prompts", str(prompts), "--report-to", recorder]
    assert rapm("distill", "--resume", str(folder), "--iterations", "3", *more)[0] == 0
    prompts.unlink()
    assert rapm("distill", "--resume", str(folder), "--iterations", "4")[0] == 0
    assert [iteration for iteration, _ in Recorder.made.logged] == [3]
    assert [path.name for path in sorted((folder / "previews").iterdir())] == ["00000003.png", "00000004.png"]
    with Image.open(folder / "previews" / "00000004.png") as sheet:
        assert sheet.width == 6 + 2 * (128 + 6)  # two prompts
    assert (
        rapm("distill", "--resume", str(folder), "--iterations", "5", "--preview-every", "0", "--report-to", "")[0] == 0
    )
    assert len(list((folder / "previews").iterdir())) == 2
    assert [iteration for iteration, _ in Recorder.made.logged] == [3]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("--report-to", "nobody"), "'nobody'"),
        (("--preview-every", "-1"), "--preview-every"),
        (("--preview-prompts", "-"), "--preview-every"),
    ],
)
def test_what_cannot_be_reported_is_refused_before_a_run_is_begun(rapm, tmp_path, monkeypatch, argv, named):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a red cube")))
    code, _, err = rapm(*DISTILL, "--output", str(tmp_path / "run"), *argv)
    assert code == 2
    assert named in err
    assert not (tmp_path / "run").exists()

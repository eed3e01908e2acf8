"""Images of several sizes, from the teacher's trajectories to the images of the distilled student."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from rapm_cli.bases.families import SDXL_DEFAULTS
from rapm_cli.bases.places import samples_dir
from rapm_cli.cli.app import main
from rapm_cli.distill.trajectories import trajectory_store
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import load_lora
from rapm_cli.inspect.disk_usage import trajectories_at
from rapm_cli.runs.checkpoints import read_settings
from rapm_cli.runs.images import GAP, read_recipe
from rapm_cli.runs.run import Run
from tests.bases.conftest import pipeline, usual_shapes  # noqa: F401  # fixture
from tests.bases.small_models import edit
from tests.messages import names

PROMPT = "a red cube left of a blue sphere at dawn"
SIZES = [(64, 96), (96, 64), (64, 64)]
NAMES = ",".join(f"{width}x{height}" for width, height in SIZES)
SHORT = ["--iterations", "4", "--trajectories", "7", "--fine-steps", "2", "--samples", "8", "--warmup", "0"]


@pytest.fixture(scope="module")
def made(originals, tmp_path_factory):
    """A short run at three sizes, in a home of its own."""
    place = tmp_path_factory.mktemp("made")
    argv = ["--base", str(originals["sdxl"]), "--size", NAMES, "--batch-size", "2", *SHORT, "--quiet"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAPM_HOME", str(place / "home"))
        patch.setattr("rapm_cli.distill.distill.COLUMNS", 3)
        assert main(["distill", *argv, "--output", str(place / "run")]) == 0
    return originals["sdxl"], place, argv


def kept_sizes():
    """The sizes of all samples that evaluations keep."""
    found = set()
    for path in samples_dir().rglob("*.png"):
        with Image.open(path) as image:
            found.add(image.size)
    return found


def test_every_trajectory_has_its_size_and_says_so_to_the_network(made, monkeypatch):
    _, place, _ = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    settings = read_settings(Run(place / "run"))[0]
    store = trajectory_store(settings, SDXL_DEFAULTS.rollout_batch)
    found = store.stored()
    assert trajectories_at(store.folder)["made"] == 7
    for k in range(7):
        width, height = SIZES[k % 3]
        one = found[torch.tensor([k])]
        assert one.z_teacher.shape == (1, 5, 4, height // 8, width // 8)
        assert one.cond.time_ids.tolist() == [[height, width, 0, 0, height, width]]


def test_the_run_its_lora_its_sheet_and_its_comparison_have_the_sizes(made, monkeypatch):
    _, place, _ = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    recipe = json.loads(read_header(place / "run" / "lora.safetensors").metadata["rapm_recipe"])
    assert recipe["teacher"]["sizes"] == NAMES.split(",")
    with Image.open(place / "run" / "sheet.png") as sheet:
        assert sheet.width == sum(width for width, _ in SIZES) + (len(SIZES) + 1) * GAP
    assert kept_sizes() == {SIZES[0]}


def test_a_run_of_several_sizes_that_is_gone_on_with_ends_with_the_same_bits(made, rapm, monkeypatch):
    _, place, argv = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    again = str(place / "again")
    assert rapm("distill", *argv, "--samples", "0", "--iterations", "1", "--output", again)[0] == 0
    code, _, err = rapm("distill", "--resume", again, "--size", "64x64", "--quiet")
    assert (code, names(err, NAMES, "64x64")) == (2, True)
    assert rapm("distill", "--resume", again, "--iterations", "4", "--quiet")[0] == 0
    one, two = (load_lora(place / name / "lora.safetensors").state for name in ("run", "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_images_of_another_size_are_the_pipelines(made, rapm, monkeypatch, tmp_path):
    folder, place, _ = made
    monkeypatch.setenv("RAPM_HOME", str(place / "home"))
    width, height = SIZES[0]
    argv = ["generate", PROMPT, "--lora", str(place / "run"), "--seed", "3", "--compare", "--output", str(tmp_path)]
    assert rapm(*argv, "--size", f"{width}x{height}", "--precision", "fp32")[0] == 0
    path = tmp_path / "000-seed3-compare.png"
    pair = np.asarray(Image.open(path), dtype=int)[-height:]
    pipe = pipeline(folder)
    call = {"prompt": PROMPT, "width": width, "height": height}

    def theirs(steps, guidance_scale):
        generator = torch.Generator().manual_seed(3)
        image = pipe(**call, generator=generator, num_inference_steps=steps, guidance_scale=guidance_scale).images[0]
        return np.asarray(image, dtype=int)

    assert np.abs(theirs(8, 7.5) - pair[:, :width]).max() <= 1
    pipe.load_lora_weights(str(place / "run"), weight_name="lora.safetensors")
    assert np.abs(theirs(4, 1.0) - pair[:, -width:]).max() <= 1
    assert read_recipe(path)["size"] == f"{width}x{height}"
    assert f"Size: {width}x{height}" in Image.open(path).text["parameters"]
    assert (
        rapm(
            "generate",
            "--from",
            str(path),
            "--output",
            str(tmp_path / "again"),
            "--quiet",
            "--lora",
            str(place / "run"),
        )[0]
        == 0
    )
    (again,) = (tmp_path / "again").iterdir()
    assert np.array_equal(np.asarray(Image.open(again)), np.asarray(Image.open(path)))


def test_a_base_that_is_not_square_is_sampled_at_its_own_size(made, copy_of, rapm, tmp_path):
    _, place, _ = made
    folder, lora = copy_of("sdxl"), str(place / "run" / "lora.safetensors")
    edit(folder, "unet/config.json", sample_size=[12, 8])
    argv = ["--base", str(folder), "--lora", lora, "--precision", "fp32", "--output", str(tmp_path), "--quiet"]
    assert rapm("generate", PROMPT, "--seed", "3", *argv)[0] == 0
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(place / "run"), weight_name="lora.safetensors")
    generator = torch.Generator().manual_seed(3)
    call = {"width": 64, "height": 96, "num_inference_steps": 4, "guidance_scale": 1.0}  # two sides need their names
    theirs = pipe(PROMPT, generator=generator, **call).images[0]
    ours = Image.open(tmp_path / "000-seed3.png")
    assert ours.size == theirs.size == (64, 96)
    assert np.abs(np.asarray(ours, dtype=int) - np.asarray(theirs, dtype=int)).max() <= 1


def test_an_evaluation_samples_every_model_at_a_size(made, rapm, monkeypatch):
    _, place, _ = made
    monkeypatch.setenv("RAPM_HOME", str(place / "evaluated"))
    argv = ["eval", "--lora", str(place / "run"), "--base", str(made[0]), "--samples", "2", "--teacher-samples", "2"]
    code, out, err = rapm(*argv, "--metrics", "fidelity,latents", "--size", "96x64", "--json", "--quiet")
    assert code == 0, err
    assert json.loads(out)["size"] == "96x64"
    assert kept_sizes() == {(96, 64)}
    code, _, err = rapm(*argv, "--size", "96x60", "--quiet")
    assert (code, names(err, "96x60", "96x32", "96x64")) == (2, True)


def test_an_export_names_the_first_size(made, rapm, tmp_path, usual_shapes):  # noqa: F811
    folder, place, _ = made
    output = tmp_path / "out"
    assert rapm("export", str(place / "run"), "--base", str(folder), "--output", str(output), "--quiet")[0] == 0
    metadata = read_header(output / "out-kohya.safetensors").metadata
    assert (metadata["ss_resolution"], metadata["modelspec.resolution"]) == ("(64, 96)", "64x96")
    nodes = json.loads((output / "comfyui.json").read_text())
    assert (nodes["5"]["inputs"]["width"], nodes["5"]["inputs"]["height"]) == SIZES[0]
    assert ", ".join(NAMES.split(",")) in (output / "README.md").read_text()


@pytest.mark.parametrize("command", [["distill", "--dry-run"], ["generate", "a red cube"]])
def test_a_size_that_the_networks_cannot_divide_is_refused(originals, rapm, shipped_lora, command):
    lora = ["--lora", str(shipped_lora)] if command[0] == "generate" else []
    code, _, err = rapm(*command, "--base", "demo", *lora, "--size", "100x60", "--quiet")
    assert (code, names(err, "100x60", "96x32", "128x64")) == (2, True)

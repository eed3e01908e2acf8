"""Which base a name means, and which models are refused before any work."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases import BASES, find_base
from rapm_cli.bases.checkpoint import checkpoint_kind
from rapm_cli.bases.families import SD15_DEFAULTS, SDXL_DEFAULTS
from rapm_cli.bases.find import folder_identity
from rapm_cli.bases.hub import CONFIGS, OUTLINE, PIPELINE, Snapshot
from rapm_cli.bases.published import PUBLISHED
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.formats.header import read_header
from rapm_cli.formats.original_layout import UNET, UNET_PARAMETERS
from tests.bases.conftest import WRITERS
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import edit, shard, weight_files
from tests.messages import names, naming

OUT = Output(quiet=True)
PINNED = {published.repo: published.revision for published in PUBLISHED.values()}


@pytest.fixture
def hub(monkeypatch, originals):
    """A hub of one repository; what is asked of it."""
    asked = []

    def fetch(repo, revision, selection, reporter):
        asked.append((repo, revision, selection))
        family = "sd15" if "sd15" in repo or "v1-5" in repo else "sdxl"
        return Snapshot(repo, PINNED.get(repo, "0" * 40), originals[family], ())

    monkeypatch.setattr("rapm_cli.bases.published.fetch", fetch)
    return asked


@pytest.mark.parametrize("name", ["demo", "sdxl"])
def test_a_registered_name_goes_before_a_folder_of_that_name(name, tmp_path, monkeypatch, originals):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).symlink_to(originals["sd15"], target_is_directory=True)
    assert find_base(name, OUT) is BASES[name]
    assert find_base(f"./{name}", OUT).name == "small-sd15"


@pytest.mark.parametrize(("family", "defaults"), [("sdxl", SDXL_DEFAULTS), ("sd15", SD15_DEFAULTS)])
def test_a_folder_has_its_familys_settings_and_its_own_name(originals, family, defaults):
    base = find_base(str(originals[family]), OUT)
    assert (base.name, base.source, base.defaults) == (f"small-{family}", str(originals[family]), defaults)
    assert base.locate(OUT).folder == originals[family]


def test_a_folder_is_found_again_from_elsewhere(originals, tmp_path, monkeypatch):
    monkeypatch.chdir(originals["sdxl"].parent)
    source = find_base("small-sdxl", OUT).source
    monkeypatch.chdir(tmp_path)
    assert find_base(source, OUT).locate(OUT).folder == originals["sdxl"]


@pytest.mark.parametrize(
    ("name", "repo", "revision"),
    [
        ("some/sdxl", "some/sdxl", None),
        ("some/sd15@main", "some/sd15", "main"),
        ("some-one/my.sdxl_v2@refs/pr/3", "some-one/my.sdxl_v2", "refs/pr/3"),
    ],
)
def test_a_repository_of_the_hub_costs_only_its_configurations_until_it_is_needed(hub, name, repo, revision):
    base = find_base(name, OUT)
    assert hub == [(repo, revision, OUTLINE)]
    assert (base.name, base.source) == (repo, name)
    assert base.defaults == (SD15_DEFAULTS if "sd15" in repo else SDXL_DEFAULTS)
    assert base.locate(OUT).identity == f"{repo}@{'0' * 40}"
    assert hub[1:] == [(repo, "0" * 40, PIPELINE)]


@pytest.mark.parametrize("name", ["", "demmo", "a/b/c", "a b/c", "x" * 5000])
def test_what_is_nothing_is_refused_without_asking_the_hub(hub, name):
    with pytest.raises(ConfigError) as caught:
        find_base(name, OUT)
    assert repr(name) in caught.value.message
    assert "ORG/NAME" in caught.value.remedy
    assert (caught.value.remedy.count("'demo'") > 0) == (name == "demmo")
    assert hub == []


@pytest.mark.parametrize(
    "name", ["mine.safetensors", "no/where.safetensors", "mine.ckpt", "./nowhere", "../no/where", "/no/where", "~/mine"]
)
def test_a_file_or_folder_that_is_not_there_is_not_asked_of_the_hub(hub, name):
    with pytest.raises(InputError, match=naming("no file or folder", repr(name))):
        find_base(name, OUT)
    assert hub == []


@pytest.mark.parametrize("family", WRITERS)
def test_a_checkpoint_is_read_with_the_configurations_of_its_family(originals, usual_shapes, hub, tmp_path, family):
    path = write_checkpoint(originals[family], tmp_path / "mine.safetensors")
    base = find_base(str(path), OUT)
    assert hub == []
    assert (base.name, base.source, base.defaults) == ("mine", str(path), BASES[family].defaults)
    weights = base.locate(OUT)
    assert hub == [(PUBLISHED[family].repo, PUBLISHED[family].revision, CONFIGS)]
    assert (weights.checkpoint, weights.folder, weights.prediction_type) == (path, originals[family], None)


def test_a_checkpoint_that_says_so_predicts_velocities(originals, usual_shapes, tmp_path):
    path = write_checkpoint(originals["sdxl"], tmp_path / "v.safetensors", v_pred=torch.ones(1))
    assert checkpoint_kind(path) == ("sdxl", "v_prediction", False)


def test_weights_are_told_apart_wherever_they_lie(originals, copy_of):
    copy = copy_of("sdxl")
    assert folder_identity(copy) == folder_identity(originals["sdxl"])
    edit(copy, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert folder_identity(copy) != folder_identity(originals["sdxl"])  # or trajectories of before would be found
    edit(copy, "scheduler/scheduler_config.json", prediction_type="epsilon")
    assert folder_identity(copy) == folder_identity(originals["sdxl"])
    path = copy / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert folder_identity(copy) != folder_identity(originals["sdxl"])


def test_one_layer_of_other_weights_makes_another_model(tmp_path):
    path, mib = tmp_path / "unet" / "model.safetensors", 2**20
    path.parent.mkdir()
    found = set()
    for layer in (None, 7, 500, 1023):
        with path.open("wb") as file:
            file.truncate(1024 * mib)
            if layer is not None:
                file.seek(layer * mib)
                file.write(b"x" * mib)
        found.add(folder_identity(tmp_path))
    assert len(found) == 4


def index(**parts):
    return lambda folder: edit(folder, "model_index.json", **parts)


def config(part, **settings):
    return lambda folder: edit(folder, f"{part}/config.json", **settings)


def scheduler(**settings):
    return lambda folder: edit(folder, "scheduler/scheduler_config.json", **settings)


def cut(part):
    """A download that broke off."""

    def change(folder):
        path = only_file(folder, part)
        path.write_bytes(path.read_bytes()[:-100])

    return change


def without(part, name):
    """A file that lacks a tensor."""

    def change(folder):
        path = only_file(folder, part)
        state = load_file(path)
        del state[name]
        save_file(state, path, {"format": "pt"})

    return change


def pickled(folder):
    """Weights in PyTorch's own format alone."""
    for path in weight_files(folder):
        torch.save(load_file(path), path.with_suffix(".bin"))
        path.unlink()


def without_a_shard(folder):
    shard(folder, "unet", 3)
    sorted((folder / "unet").glob("*.safetensors"))[1].unlink()


def only_file(folder, part):
    (path,) = (folder / part).glob("*.safetensors")
    return path


SPOILED = {
    "inpainting": (config("unet", in_channels=9), (9, 4)),
    "Flux": (index(_class_name="FluxPipeline"), ("StableDiffusionXLPipeline", "StableDiffusionPipeline")),
    "code for the pipeline": (index(_class_name=["mine", "Mine"]), ("['mine', 'Mine']",)),
    "code for a part": (index(unet=["mine", "MyUNet"]), ("['mine', 'MyUNet']", "unet")),
    "no text encoder": (index(text_encoder=[None, None]), ("[None, None]", "text_encoder")),
    "only pickles": (pickled, ("unet", "safetensors")),
    "another schedule": (scheduler(num_train_timesteps=500), (500, 1000)),
    "rescaled": (scheduler(rescale_betas_zero_snr=True), ("scaled_linear", "epsilon", "rescaled")),
    "other betas": (scheduler(beta_schedule="linear"), ("linear", "epsilon")),
    "no betas": (scheduler(beta_start=None), ("schedule",)),
    "predicts samples": (scheduler(prediction_type="sample"), ("scaled_linear", "sample")),
    "no sides": (config("unet", sample_size=[8, 12, 4]), ("[8, 12, 4]",)),
    "cut encoder": (cut("text_encoder"), ("model.safetensors",)),
    "a shard is missing": (without_a_shard, ("unet", 2, 3)),
    "a tensor is missing": (without("unet", "conv_out.weight"), ("unet", "conv_out.weight")),
    "an encoder's tensor is missing": (
        without("text_encoder", "text_model.final_layer_norm.weight"),
        ("text_encoder", "final_layer_norm.weight"),
    ),
    "another width": (config("unet", block_out_channels=[8, 16, 24]), ("unet",)),
    "no configuration": (lambda folder: (folder / "unet" / "config.json").unlink(), ("config.json",)),
    "no vocabulary": (
        lambda folder: [(folder / "tokenizer_2" / name).unlink() for name in ("vocab.json", "merges.txt")],
        ("tokenizer", "text_encoder_2"),
    ),
    "no length": (
        lambda folder: (folder / "tokenizer_2" / "tokenizer_config.json").unlink(),
        ("tokenizer", "text_encoder_2"),
    ),
}


@pytest.fixture
def refused(rapm, home, tmp_path):
    """What `rapm distill` says of a base that it refuses, in one line, with nothing begun."""
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red cube\n")

    def distil(source):
        argv = ["--base", str(source), "--prompts", str(prompts), "--trajectories", "1", "--iterations", "1"]
        argv += ["--warmup", "0"]
        code, out, err = rapm("distill", *argv, "--quiet")
        assert (code, out) == (3, ""), err
        assert len(err.splitlines()) == 1, err
        assert err.startswith("error: ")
        assert str(source) in err
        assert "; " in err  # a remedy
        assert not list(home.glob("data/runs/[!.]*"))
        return err

    return distil


@pytest.mark.parametrize(("spoil", "named"), SPOILED.values(), ids=SPOILED)
def test_a_folder_that_rapm_cannot_distil_is_refused_before_work_begins(refused, copy_of, spoil, named):
    folder = copy_of("sdxl")
    spoil(folder)
    assert names(refused(folder), *named)


def test_a_stable_diffusion_2_is_not_taken_for_1_5(refused, copy_of):
    folder = copy_of("sd15")
    edit(folder, "unet/config.json", cross_attention_dim=1024)
    assert names(refused(folder), "Stable Diffusion 2")


def as_sd2(folder, path):
    """Stable Diffusion 2 has OpenCLIP in the place of CLIP."""
    write_checkpoint(folder, path)
    state = load_file(path)
    renamed = {name.replace("cond_stage_model.transformer.", "cond_stage_model.model."): v for name, v in state.items()}
    save_file(renamed, path)


def for_inpainting(folder, path):
    write_checkpoint(folder, path)
    name, state = "model.diffusion_model.input_blocks.0.0.weight", load_file(path)
    save_file(state | {name: torch.zeros(8, 9, 3, 3)}, path)


def without_vae(folder, path):
    write_checkpoint(folder, path)
    save_file({name: v for name, v in load_file(path).items() if not name.startswith("first_stage_model.")}, path)


def cut_short(folder, path):
    write_checkpoint(folder, path)
    path.write_bytes(path.read_bytes()[:-100])


def lora(folder, path):
    save_file({"unet.mid_block.attentions.0.proj_in.lora_A.weight": torch.zeros(1, 16)}, path)


@pytest.mark.parametrize(
    ("write", "named"),
    [
        (as_sd2, "Stable Diffusion XL"),
        (for_inpainting, "9"),
        (without_vae, "VAE"),
        (lora, "Stable Diffusion XL"),
        (cut_short, "safetensors"),
        (lambda folder, path: path.write_text("nothing"), "safetensors"),
    ],
)
def test_a_file_that_is_no_whole_checkpoint_is_refused(refused, originals, tmp_path, write, named):
    path = tmp_path / "model.safetensors"
    write(originals["sd15"], path)
    assert names(refused(path), named)


def test_a_pickled_checkpoint_is_refused_unread(refused, tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    assert names(refused(path), "safetensors")


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("conditioner.embedders.1.model.text_projection", "text_encoder_2"),
        ("model.diffusion_model.out.2.weight", "UNet"),
    ],
)
def test_a_checkpoint_that_lacks_a_weight_is_refused(refused, hub, originals, usual_shapes, tmp_path, name, part):
    path = write_checkpoint(originals["sdxl"], tmp_path / "model.safetensors")
    state = load_file(path)
    del state[name]
    save_file(state, path)
    assert names(refused(path), part)


def pruned(path):
    """As SSD-1B is: without the attention of its middle block."""
    state = load_file(path)
    save_file({name: value for name, value in state.items() if "middle_block.1." not in name}, path)


@pytest.mark.parametrize("family", WRITERS)
@pytest.mark.parametrize("spoil", [lambda path: None, pruned], ids=["small", "pruned"])
def test_a_checkpoint_of_other_shapes_is_refused_from_its_header(
    refused, hub, rapm, originals, request, tmp_path, family, spoil
):
    """It would be read with the published configuration."""
    path = write_checkpoint(originals[family], tmp_path / "model.safetensors")
    spoil(path)
    if spoil is pruned:
        request.getfixturevalue("usual_shapes")
    count = sum(one.count for name, one in read_header(path).tensors.items() if name.startswith(UNET))
    named = f"{count:,}", f"{UNET_PARAMETERS[family]:,}"
    assert names(refused(path), *named)
    for command in (["distill", "--dry-run"], ["generate", "a red cube"]):
        code, out, err = rapm(*command, "--base", str(path), "--quiet")
        assert (code, out, names(err, *named)) == (3, "", True), err
    assert hub == []
    code, out, _ = rapm("inspect", str(path), "--json")
    facts = json.loads(out)
    assert (code, facts["programs"]) == (0, ["diffusers"])
    assert names(facts["said"]["not a base"], *named)

"""What a base says of itself is believed or refused, before its weights are fetched or read."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rapm_cli.bases import LoadedBase, Weights, find_base
from rapm_cli.bases.checkpoint import checkpoint_kind
from rapm_cli.bases.find import checkpoint_identity
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.network.schedule import NoiseSchedule
from rapm_cli.export.export import export
from rapm_cli.formats.lora import LoraFile, save_lora
from tests.bases.conftest import CPU, load
from tests.bases.hub_pipeline import REPO
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import edit
from tests.messages import names, naming

OUT = Output(quiet=True)
ALPHAS = NoiseSchedule.scaled_linear().alphas_cumprod
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
EMPTY, ONE = torch.empty(0), torch.ones(1)


def rescaled(alphas):
    """Zero terminal SNR, by algorithm 1 of arXiv:2305.08891."""
    roots = alphas.sqrt()
    return ((roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])) ** 2


ZERO = rescaled(ALPHAS)


@pytest.fixture
def checkpoint(originals, tmp_path, usual_shapes):
    """Writes a checkpoint with more tensors and with metadata."""

    def write(metadata=None, family="sdxl", **more):
        path = write_checkpoint(originals[family], tmp_path / "one.safetensors", **more)
        save_file(load_file(path), path, metadata)
        return path

    return write


@pytest.mark.parametrize(
    ("metadata", "more", "predicts"),
    [
        ({}, {}, None),
        ({"modelspec.prediction_type": "v"}, {}, "v_prediction"),  # sd-scripts
        ({"modelspec.prediction_type": "epsilon"}, {}, "epsilon"),
        ({"modelspec.prediction_type": "None"}, {}, None),
        ({"modelspec.predict_key": "v"}, {}, "v_prediction"),  # ComfyUI
        ({"prediction_type": "V-Prediction"}, {}, "v_prediction"),
        ({"ss_v_parameterization": "True"}, {}, "v_prediction"),
        ({"ss_v_parameterization": "False", "ss_zero_terminal_snr": "False"}, {}, "epsilon"),
        ({"modelspec.prediction_type": "v", "ss_v_parameterization": "True"}, {"v_pred": EMPTY}, "v_prediction"),
        ({}, {"v_pred": EMPTY}, "v_prediction"),
        ({}, {"alphas_cumprod": ALPHAS.half()}, None),
        ({}, {"alphas_cumprod": ALPHAS.bfloat16()}, None),
        ({}, {"alphas_cumprod": ALPHAS.double()}, None),
        ({}, {"denoiser.sigmas": SIGMAS}, None),
        ({}, {"denoiser.sigmas": torch.cat([SIGMAS.flip(0), torch.zeros(1)]).half()}, None),
    ],
)
def test_a_checkpoint_is_believed(checkpoint, metadata, more, predicts):
    assert checkpoint_kind(checkpoint(metadata, **more)) == ("sdxl", predicts, False)


V = {"modelspec.prediction_type": "v"}


@pytest.mark.parametrize(
    ("metadata", "more"),
    [
        ({}, {"v_pred": EMPTY, "ztsnr": EMPTY}),  # NoobAI-XL
        ({"ss_v_parameterization": "True", "ss_zero_terminal_snr": "True"}, {}),  # sd-scripts
        (V, {"ztsnr": EMPTY, "alphas_cumprod": ALPHAS}),  # as ComfyUI, which believes the mark
        (V, {"alphas_cumprod": rescaled(ALPHAS).bfloat16()}),
        (V, {"denoiser.sigmas": torch.cat([((1 - ZERO) / ZERO).sqrt()[:-1], torch.tensor([4518.0])]).half()}),
    ],
)
def test_a_checkpoint_down_to_zero_signal_is_believed(checkpoint, metadata, more):
    assert checkpoint_kind(checkpoint(metadata, **more)) == ("sdxl", "v_prediction", True)


@pytest.mark.parametrize(
    ("metadata", "more", "named"),
    [
        ({"modelspec.prediction_type": "sample"}, {}, "sample"),
        ({"modelspec.prediction_type": "epsilon"}, {"v_pred": EMPTY}, "contradicts"),
        ({"modelspec.predict_key": "v", "ss_v_parameterization": "False"}, {}, "contradicts"),
        ({"ss_zero_terminal_snr": "True"}, {}, "zero"),  # an estimate of noise says nothing without a signal
        ({"modelspec.prediction_type": "epsilon"}, {"ztsnr": EMPTY}, "zero"),
        ({}, {"edm_vpred.sigma_max": 120 * ONE, "edm_vpred.sigma_min": ONE}, "CosXL"),
        ({}, {"edm_mean": torch.ones(1, 4, 1, 1), "edm_std": torch.ones(1, 4, 1, 1)}, "Playground"),
        ({}, {"alphas_cumprod": rescaled(ALPHAS)}, "zero"),
        ({}, {"alphas_cumprod": torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)}, "alphas_cumprod"),
        ({}, {"alphas_cumprod": ALPHAS[:500]}, "alphas_cumprod"),
        ({}, {"denoiser.sigmas": torch.logspace(-3, 2, 1000)}, "denoiser.sigmas"),
        ({}, {"model.diffusion_model.time_embed.cond_proj.weight": torch.ones(32, 256)}, "guidance"),
        ({}, {"model.diffusion_model.scaled_fp8": EMPTY}, "scaled_fp8"),
        ({}, {"model.diffusion_model.out.2.scale_weight": ONE}, "8-bit"),
    ],
)
def test_a_checkpoint_that_would_be_distilled_wrongly_is_refused(checkpoint, metadata, more, named):
    with pytest.raises(InputError, match=naming("one.safetensors", named)):
        checkpoint_kind(checkpoint(metadata, **more))


def test_velocities_that_only_the_header_names_have_trajectories_of_their_own(checkpoint):
    plain = checkpoint_identity(checkpoint({"modelspec.prediction_type": ""}))
    path = checkpoint({"modelspec.prediction_type": "v"})
    found = {plain, checkpoint_identity(path)}
    assert len(found) == 2
    assert checkpoint_identity(path.rename(path.with_name("other.safetensors"))) in found


def test_a_header_s_velocities_are_kept_in_a_merged_file(checkpoint, originals, tmp_path):
    path, lora = checkpoint({"modelspec.prediction_type": "v"}), tmp_path / "lora.safetensors"
    layer = "mid_block.attentions.0.proj_in"
    halves = {f"{layer}.lora_A.weight": torch.ones(1, 16), f"{layer}.lora_B.weight": torch.ones(16, 1)}
    save_lora(lora, LoraFile(halves, 1, 1.0, {}))
    said = checkpoint_kind(path).prediction_type
    weights = Weights(originals["sdxl"], "", checkpoint=path, prediction_type=said)
    base = replace(find_base(str(originals["sdxl"]), OUT), locate=lambda _: weights, prediction_type=said)
    export(lora, base, tmp_path / "merged.safetensors", fuse=True, single_file=True, reporter=OUT)
    assert checkpoint_kind(tmp_path / "merged.safetensors") == ("sdxl", "v_prediction", False)


@pytest.mark.parametrize("family", ["sdxl", "sd15"])
def test_a_clip_without_text_model_in_its_names_is_read(originals, checkpoint, family):
    path = checkpoint(family=family)
    short = {name.replace("transformer.text_model.", "transformer."): value for name, value in load_file(path).items()}
    save_file(short, path)
    assert checkpoint_kind(path).family == family
    ours = LoadedBase(Weights(originals[family], "", checkpoint=path), CPU, torch.float32).encode(["a red cube"])
    theirs = load(originals[family]).encode(["a red cube"])
    assert torch.equal(ours.tokens, theirs.tokens)
    name = next(name for name in short if name.endswith("transformer.final_layer_norm.weight"))
    save_file({key: value for key, value in short.items() if key != name}, path)
    with pytest.raises(InputError, match=naming("text_encoder", "final_layer_norm.weight")):
        LoadedBase(Weights(originals[family], "", checkpoint=path), CPU, torch.float32).encode(["a red cube"])


OTHER_FILES = {  # the tensors by which a file that is no whole SDXL or SD 1.5 is known, and its name
    "conditioner.embedders.0.model.transformer.resblocks.0.ln_1.weight": "refiner",
    "cond_stage_model.model.transformer.resblocks.0.ln_1.weight": "Stable Diffusion 2",
    "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight": "Stable Diffusion 3",
    "model.diffusion_model.double_blocks.0.img_attn.qkv.weight": "Flux",
}


@pytest.mark.parametrize(("tensor", "named"), OTHER_FILES.items())
def test_a_file_of_another_family_is_refused_by_its_name(tmp_path, rapm, tensor, named):
    path = tmp_path / "one.safetensors"
    save_file({tensor: ONE}, path)
    code, _, err = rapm("distill", "--dry-run", "--base", str(path), "--quiet")
    assert (code, names(err, "one.safetensors", named)) == (3, True)


REFUSED = {
    "rescaled": ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}),
    "flow": ("scheduler/scheduler_config.json", {"beta_schedule": None}),
    "another family": ("model_index.json", {"_class_name": "FluxPipeline"}),
    "inpainting": ("unet/config.json", {"in_channels": 9}),
    "LCM": ("unet/config.json", {"time_cond_proj_dim": 256}),
    "image prompts": ("unet/config.json", {"encoder_hid_dim_type": "ip_image_proj"}),
    "Playground": ("vae/config.json", {"latents_mean": [0.1, 0.2, 0.3, 0.4]}),
}


@pytest.fixture(params=REFUSED.values(), ids=REFUSED)
def refused_folder(request, copy_of):
    folder = copy_of("sdxl")
    edit(folder, request.param[0], **request.param[1])
    return folder


def test_a_refused_repository_fetches_no_weights(refused_folder, hub, rapm):
    files = {path.relative_to(refused_folder).as_posix(): path for path in refused_folder.rglob("*") if path.is_file()}
    hub.repos[REPO] = {name: path.read_bytes() for name, path in files.items()}
    for command in (["distill"], ["distill", "--dry-run"], ["generate", "a red cube"]):
        code, out, err = rapm(*command, "--base", REPO, "--quiet")
        assert (code, out, names(err, REPO)) == (3, "", True), err
    assert any("model_index.json" in request for request in hub.requests)
    assert not any("safetensors" in request for request in hub.requests)


def test_a_refused_folder_is_refused_in_a_dry_run_and_not_said_to_be_readable(refused_folder, rapm):
    code, _, err = rapm("distill", "--dry-run", "--base", str(refused_folder), "--quiet")
    assert (code, names(err, str(refused_folder))) == (3, True)
    code, out, _ = rapm("inspect", str(refused_folder))
    assert code == 0
    assert "rapm (--base)" not in out
    assert names(out, "rapm", "cannot")


def test_only_a_checkpoint_that_can_be_distilled_is_said_to_be(checkpoint, originals, rapm):
    for path in (checkpoint(), originals["sdxl"]):
        assert "rapm (--base)" in rapm("inspect", str(path))[1]
    out = rapm("inspect", str(checkpoint({"modelspec.prediction_type": "v"})))[1]
    assert names(out, "predicts", "v_prediction")
    out = rapm("inspect", str(checkpoint(v_pred=EMPTY, ztsnr=EMPTY)))[1]
    assert names(out, "predicts", "v_prediction", "zero")
    path = checkpoint(ztsnr=EMPTY)
    out = rapm("inspect", str(path))[1]
    assert "rapm (--base)" not in out
    assert names(out, "rapm", path.name, "zero")

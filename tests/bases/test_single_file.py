"""A base with a LoRA merged in, as one checkpoint in the original layout: against diffusers, which reads and merges."""

import dataclasses
import hashlib
import json

import diffusers
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rapm_cli.bases import LoadedBase, Weights, find_base
from rapm_cli.bases.architectures import ARCHITECTURES
from rapm_cli.bases.base import Base
from rapm_cli.bases.checkpoint import checkpoint_kind
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError, VerificationError
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.core.storage.commit import verify
from rapm_cli.export.export import export
from rapm_cli.formats import safetensors_writer
from rapm_cli.formats.lora import LoraFile, apply_lora, load_lora, save_lora
from tests.bases.conftest import CPU, load, pipeline
from tests.bases.layouts import FOLDERS, one_file
from tests.bases.original_layout import write_checkpoint
from tests.bases.small_models import edit
from tests.messages import naming

OUT = Output(quiet=True)
PROMPT = "a red cube left of a blue sphere at dawn"
RECIPE = {"base": "small", "sampler": {"steps": 4, "scheduler": "DDIM", "timesteps": [999, 749, 499, 249]}}
FAMILIES = ("sdxl", "sd15")


@pytest.fixture
def lora_of(tmp_path):
    """Writes a LoRA at alpha ≠ rank on all of rapm's modules of a folder's UNet."""

    def write(folder, size=0.1):
        loaded = load(folder)
        attach_lora(loaded.backbone, 2, 5.0)
        weights, generator = lora_weights(loaded.backbone), torch.Generator().manual_seed(1)
        for master in weights.masters.values():
            master.data.copy_(size * torch.randn(master.shape, generator=generator))
        path = tmp_path / "lora.safetensors"
        save_lora(path, LoraFile(weights.state(), 2, 5.0, RECIPE))
        return path

    return write


def base_of(folder, weights=None) -> Base:
    """A base that lies there, its configurations of the small model and not of the published one."""
    found = find_base(str(folder), OUT)
    return found if weights is None else dataclasses.replace(found, locate=lambda reporter: weights)


def merged_by_diffusers(folder, lora):
    pipe = pipeline(folder)
    pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def read_by_diffusers(path, folder):
    kind = getattr(diffusers, json.loads((folder / "model_index.json").read_text())["_class_name"])
    pipe = kind.from_single_file(str(path), config=str(folder), dtype=torch.float32, local_files_only=True)
    pipe.scheduler = pipeline(folder).scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


def parts_of(pipe):
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return {name: part.state_dict() for name in names if (part := getattr(pipe, name, None)) is not None}


def sample(pipe):
    generator = torch.Generator().manual_seed(3)
    return pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="pt").images


def one_ulp(before, after):
    """The distance between neighbouring numbers at the largest of a tensor's weights and updates."""
    largest = torch.maximum(before.abs().max(), (after - before).abs().max())
    return torch.nextafter(largest, torch.tensor(torch.inf)) - largest


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_reads_what_it_would_have_merged_itself(originals, lora_of, tmp_path, family):
    folder = originals[family]
    lora, output = lora_of(folder), tmp_path / "one.safetensors"
    done = export(lora, base_of(folder), output, fuse=True, dtype="base", reporter=OUT, single_file=True)
    bare, theirs, ours = pipeline(folder), merged_by_diffusers(folder, lora), read_by_diffusers(output, folder)
    unmerged, expected, found = parts_of(bare), parts_of(theirs), parts_of(ours)
    assert expected.keys() == found.keys()
    changed = 0
    for part, state in expected.items():
        assert state.keys() == found[part].keys()
        for name, value in state.items():
            before = unmerged[part][name]
            if part == "unet" and not torch.equal(before, value):
                changed += 1
                assert ((found[part][name] - value).abs() <= one_ulp(before, value)).all(), name
            else:
                assert torch.equal(found[part][name], value), name
    assert changed == done.report.modules > 50
    export(lora, base_of(folder), tmp_path / "folder", fuse=True, dtype="base", reporter=OUT)
    in_folder = load_file(tmp_path / "folder" / "unet" / "diffusion_pytorch_model.safetensors")
    assert in_folder.keys() == found["unet"].keys()
    assert all(torch.equal(in_folder[name], value) for name, value in found["unet"].items())
    assert done.report.worst_lost < 1e-4
    said, expected = (
        pipe.encode_prompt(PROMPT, device=CPU, num_images_per_prompt=1, do_classifier_free_guidance=False)
        for pipe in (ours, theirs)
    )
    assert all(one is two or torch.equal(one, two) for one, two in zip(said, expected, strict=True))
    torch.testing.assert_close(sample(ours), sample(theirs), rtol=0, atol=1e-4)
    assert (sample(ours) - sample(bare)).abs().max() > 0.05


@pytest.mark.parametrize("family", FAMILIES)
def test_names_and_shapes_are_those_of_the_published_checkpoints(originals, lora_of, tmp_path, family):
    folder, output = originals[family], tmp_path / "one.safetensors"
    export(lora_of(folder, 0.0), base_of(folder), output, fuse=True, dtype="base", reporter=OUT, single_file=True)
    theirs, ours = load_file(write_checkpoint(folder, tmp_path / "theirs.safetensors")), load_file(output)
    # Buffers that no loader asks for; the folder's files have none of them.
    left_out = {name for name in theirs if name.endswith(("position_ids", "logit_scale", "alphas_cumprod"))}
    assert ours.keys() == theirs.keys() - left_out
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("layout", [*FOLDERS, one_file])
def test_every_layout_merges_into_one_file(originals, copy_of, lora_of, tmp_path, layout):
    folder = copy_of("sdxl")
    lora, weights, output = lora_of(folder), layout(folder), tmp_path / "one.safetensors"
    base = base_of(originals["sdxl"], weights)
    export(lora, base, output, fuse=True, dtype="fp32", reporter=OUT, single_file=True)
    there = LoadedBase(Weights(originals["sdxl"], "", checkpoint=output), CPU, torch.float32)
    z = torch.randn(1, *there.latent_shape, generator=torch.Generator().manual_seed(3))
    ours = LoadedBase(weights, CPU, torch.float32)
    apply_lora(ours.backbone, load_lora(lora), lora)
    cond = ours.encode([PROMPT])
    student = ours.backbone.student(z, 499, cond)
    torch.testing.assert_close(there.backbone.teacher(z, 499, there.encode([PROMPT])), student, rtol=0, atol=1e-4)
    torch.testing.assert_close(there.decode(z), ours.decode(z))


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_16_bits_are_the_float32_result_rounded_once(originals, lora_of, tmp_path, dtype):
    folder, lora = originals["sdxl"], lora_of(originals["sdxl"])
    for name, kind in (("whole", "fp32"), ("half", dtype)):
        output = tmp_path / f"{name}.safetensors"
        done = export(lora, base_of(folder), output, fuse=True, dtype=kind, reporter=OUT, single_file=True)
    whole, half = load_file(tmp_path / "whole.safetensors"), load_file(tmp_path / "half.safetensors")
    kind = {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    for name, value in whole.items():
        is_unet = name.startswith("model.diffusion_model.")
        assert half[name].dtype == (kind if is_unet else torch.float32)
        assert torch.equal(half[name], value.to(kind) if is_unet else value), name
    assert 1e-5 < done.report.mean_lost < done.report.worst_lost < 0.2


def test_the_header_says_how_to_sample(originals, lora_of, tmp_path):
    output = tmp_path / "one.safetensors"
    export(
        lora_of(originals["sdxl"]),
        base_of(originals["sdxl"]),
        output,
        fuse=True,
        dtype="base",
        reporter=OUT,
        single_file=True,
    )
    with safe_open(output, "pt") as file:
        said = file.metadata()
    assert json.loads(said["rapm_recipe"]) == RECIPE
    assert said["modelspec.architecture"] == "stable-diffusion-xl-v1-base"
    hint = "4 steps, CFG scale 1, sampler Euler, schedule type SGM Uniform"
    assert (
        said["modelspec.usage_hint"] == f"{hint} (ComfyUI: ddim with sgm_uniform; diffusers: DDIM 999, 749, 499, 249)"
    )
    data = output.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    assert said["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[start:]).hexdigest()}"


def test_what_overflows_or_does_not_fit_is_refused_and_nothing_is_left(
    originals, copy_of, lora_of, tmp_path, monkeypatch
):
    folder = copy_of("sdxl")
    before = set(tmp_path.iterdir())
    lora, output = lora_of(folder, 300.0), tmp_path / "one.safetensors"
    with pytest.raises(InputError, match=naming("f16")):
        export(lora, base_of(folder), output, fuse=True, dtype="fp16", reporter=OUT, single_file=True)
    with pytest.raises(InputError, match=naming("down_blocks.1.attentions.0.proj_in")):
        export(lora, base_of(originals["sd15"]), output, fuse=True, dtype="base", reporter=OUT, single_file=True)
    with pytest.raises(ConfigError, match=naming("--single-file", "--fuse")):
        export(lora, base_of(folder), output, fuse=False, dtype="base", reporter=OUT, single_file=True)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["encoder.conv_in.bias"][0] = torch.nan
    save_file(state, path)
    with pytest.raises(VerificationError, match=naming("first_stage_model.encoder.conv_in.bias")):
        export(lora, base_of(folder), output, fuse=True, dtype="fp32", reporter=OUT, single_file=True)
    assert set(tmp_path.iterdir()) == before | {lora}


def test_a_checkpoint_in_a_folder_comes_with_a_card_and_a_workflow(originals, lora_of, tmp_path, usual_shapes):
    folder, out = originals["sdxl"], tmp_path / "mine"
    lora = lora_of(folder)
    done = export(lora, base_of(folder), out, fuse=True, dtype="base", reporter=OUT, single_file=True)
    assert sorted(verify(out).files) == ["README.md", "comfyui.json", "mine.safetensors"]
    assert [file.path for file in done.files] == [out / "mine.safetensors"]
    nodes = json.loads((out / "comfyui.json").read_text())
    assert nodes["1"]["inputs"] == {"ckpt_name": "mine.safetensors"}
    assert "LoraLoaderModelOnly" not in {node["class_type"] for node in nodes.values()}
    said = (out / "README.md").read_text()
    assert "from_single_file('mine.safetensors'" in said
    assert "tags:\n- text-to-image\n- stable-diffusion-xl\n" in said
    export(lora, base_of(folder), tmp_path / "folder", fuse=True, dtype="base", reporter=OUT)
    assert "from_pretrained('.'" in (tmp_path / "folder" / "README.md").read_text()


def test_a_base_that_predicts_velocities_says_so(copy_of, lora_of, tmp_path, usual_shapes):
    folder, output = copy_of("sdxl"), tmp_path / "one.safetensors"
    edit(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    export(lora_of(folder), base_of(folder), output, fuse=True, dtype="base", reporter=OUT, single_file=True)
    assert checkpoint_kind(output) == ("sdxl", "v_prediction", False)
    with safe_open(output, "pt") as file:
        assert file.metadata()["modelspec.prediction_type"] == "v"


def test_a_checkpoint_of_other_shapes_is_for_diffusers_with_its_configuration(originals, lora_of, tmp_path):
    """The demo base's is one. ComfyUI, A1111 and sd-scripts know a model by its shapes."""
    assert not any(base_of(originals[family]).architecture(OUT).has_usual_shapes for family in originals)
    assert all(architecture.has_usual_shapes for architecture in ARCHITECTURES.values())
    folder, out = originals["sdxl"], tmp_path / "mine"
    (file,) = export(lora_of(folder), base_of(folder), out, fuse=True, reporter=OUT, single_file=True).files
    assert file.readers == ["diffusers"]
    assert sorted(verify(out).files) == ["README.md", "mine.safetensors"]
    said = (out / "README.md").read_text()
    assert "from_single_file('mine.safetensors', config='path/to/small-sdxl', torch_dtype=torch.float16)" in said
    assert not {"ComfyUI", "A1111", "sd-scripts"} & set(said[said.index("## Files") : said.index("## Recipe")].split())


def test_a_single_sd15_that_predicts_velocities_tells_each_program(copy_of, lora_of, tmp_path, usual_shapes):
    """ComfyUI and A1111 cannot see it in an SD 1.5, and diffusers' from_single_file not in any."""
    folder = copy_of("sd15")
    edit(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    fused = {"fuse": True, "single_file": True, "reporter": OUT}
    (alone,) = export(lora_of(folder), base_of(folder), tmp_path / "x.safetensors", **fused).files
    (beside,) = export(lora_of(folder), base_of(folder), tmp_path / "x", **fused).files
    assert alone.readers == ["diffusers", "sd-scripts"]
    assert beside.readers == ["diffusers", "ComfyUI", "sd-scripts"]
    nodes = json.loads((tmp_path / "x" / "comfyui.json").read_text())
    (number,) = [k for k, node in nodes.items() if node["class_type"] == "ModelSamplingDiscrete"]
    assert nodes[number]["inputs"]["sampling"] == "v_prediction"
    assert nodes["6"]["inputs"]["model"] == [number, 0]
    assert "prediction_type='v_prediction')" in (tmp_path / "x" / "README.md").read_text()


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_base_down_to_zero_signal_tells_each_program(copy_of, lora_of, tmp_path, usual_shapes, is_fused):
    folder, out = copy_of("sdxl"), tmp_path / "out"
    edit(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction", rescale_betas_zero_snr=True)
    made = export(lora_of(folder), base_of(folder), out, reporter=OUT, fuse=is_fused, single_file=is_fused)
    nodes = json.loads((out / "comfyui.json").read_text())
    (number,) = [k for k, node in nodes.items() if node["class_type"] == "ModelSamplingDiscrete"]
    assert (nodes[number]["inputs"]["sampling"], nodes[number]["inputs"]["zsnr"]) == ("v_prediction", True)
    assert nodes["6"]["inputs"]["model"] == [number, 0]
    card = (out / "README.md").read_text()
    assert "rescale_betas_zero_snr=True" in card
    assert "Noise schedule for sampling Zero Terminal SNR" in card
    assert "Fooocus" not in card
    if is_fused:
        assert checkpoint_kind(made.files[0].path) == ("sdxl", "v_prediction", True)
        assert {"v_pred", "ztsnr"} <= set(load_file(made.files[0].path))


def test_a_byte_that_is_lost_on_the_way_is_found(originals, lora_of, tmp_path, monkeypatch):
    real = safetensors_writer.stream_tensors

    def spoiled(path, *more):
        digest = real(path, *more)
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        return digest

    monkeypatch.setattr("rapm_cli.export.plan.stream_tensors", spoiled)
    lora = lora_of(originals["sdxl"])
    for single_file in (True, False):
        with pytest.raises(VerificationError, match=naming("new")):
            export(
                lora,
                base_of(originals["sdxl"]),
                tmp_path / ("new.safetensors" if single_file else "new"),
                fuse=True,
                dtype="base",
                reporter=OUT,
                single_file=single_file,
            )
    assert set(tmp_path.iterdir()) == {lora}

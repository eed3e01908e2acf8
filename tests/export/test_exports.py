"""Exported LoRAs, read by diffusers, and under the names that other programs look for."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rapm_cli.bases import find_base
from rapm_cli.bases.hub import PIPELINE, Snapshot
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import ConfigError, InputError, VerificationError
from rapm_cli.core.network.student import TARGET_MODULES, attach_lora, lora_weights
from rapm_cli.export.export import export
from rapm_cli.formats import exports
from rapm_cli.formats.comfyui_keys import layers_found
from rapm_cli.formats.describe import describe_lora
from rapm_cli.formats.exports import EXPORTS
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import LoraFile, load_lora, save_lora
from rapm_cli.formats.programs import PROGRAMS, verdicts
from tests.bases.conftest import load, originals, pipeline, usual_shapes  # noqa: F401  # fixtures
from tests.bases.small_models import edit
from tests.formats import lora_forms

OUT = Output(quiet=True)
PROMPT = "a red cube left of a blue sphere at dawn"
FAMILIES = ("sdxl", "sd15")
RANK, ALPHA = 3, 7.5


def write_lora(folder, path, size=0.1):
    """Write a LoRA with alpha ≠ rank on all modules that rapm trains in a folder's UNet."""
    loaded = load(folder)
    attach_lora(loaded.backbone, RANK, ALPHA)
    weights, generator = lora_weights(loaded.backbone), torch.Generator().manual_seed(1)
    for master in weights.masters.values():
        master.data.copy_(size * torch.randn(master.shape, generator=generator))
    save_lora(path, LoraFile(weights.state(), RANK, ALPHA, {"base": "small", "training": {"iterations": 60}}))
    return path


@pytest.fixture(params=FAMILIES)
def made(request, originals, tmp_path):  # noqa: F811
    """A base's folder, and a LoRA for it."""
    folder = originals[request.param]
    return request.param, folder, write_lora(folder, tmp_path / "mine.safetensors")


def sample(pipe):
    generator = torch.Generator().manual_seed(3)
    return pipe(PROMPT, num_inference_steps=4, guidance_scale=1.0, generator=generator, output_type="pt").images


def test_diffusers_samples_the_same_image_from_every_format(made, tmp_path):
    _, folder, lora = made
    done = export(lora, find_base(str(folder), OUT), tmp_path / "out", reporter=OUT)
    files = [lora, *(file.path for file in done.files)]
    assert len(files) == 1 + len(EXPORTS.names())
    images = []
    for path in files:
        pipe = pipeline(folder)
        pipe.load_lora_weights(str(path.parent), weight_name=path.name)
        images.append(sample(pipe))
    for image in images[1:]:
        torch.testing.assert_close(image, images[0], rtol=0, atol=1e-4)
    assert (sample(pipeline(folder)) - images[0]).abs().max() > 0.05


def test_headers_and_sidecars_describe_the_export(made, tmp_path, usual_shapes):  # noqa: F811
    family, folder, lora = made
    done = export(lora, find_base(str(folder), OUT), tmp_path / "out", reporter=OUT)
    assert sorted(path.name for path in done.path.iterdir()) == [
        "MANIFEST.json", "README.md", "comfyui.json", "out-diffusers.safetensors", "out-kohya.safetensors"
    ]  # fmt: skip
    for file in done.files:
        data = file.path.read_bytes()
        assert (file.sha256, file.bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    with safe_open(done.path / "out-kohya.safetensors", "pt") as file:
        said = file.metadata()
    data = (done.path / "out-kohya.safetensors").read_bytes()
    digest = hashlib.sha256(data[8 + int.from_bytes(data[:8], "little") :]).hexdigest()
    assert said["sshs_model_hash"] == digest
    assert said["modelspec.hash_sha256"] == f"0x{digest}"
    assert said["ss_base_model_version"] == {"sdxl": "sdxl_base_v1-0", "sd15": "sd_v1"}[family]
    assert (said["ss_network_dim"], said["ss_network_alpha"], said["ss_steps"]) == ("3", "3.0", "60")
    assert load_lora(done.path / "out-kohya.safetensors").recipe == load_lora(lora).recipe
    nodes = json.loads((done.path / "comfyui.json").read_text())
    assert (
        next(node for node in nodes.values() if node["class_type"] == "LoraLoaderModelOnly")["inputs"]["lora_name"]
        == "out-kohya.safetensors"
    )
    for node in nodes.values():  # every link leads to a node
        assert all(value[0] in nodes for value in node["inputs"].values() if isinstance(value, list))


def test_a_lora_of_a_base_of_other_shapes_is_for_diffusers_alone(made, tmp_path):
    """The demo base is one. ComfyUI, A1111 and sd-scripts cannot open it, so no card or workflow names them."""
    _, folder, lora = made
    done = export(lora, find_base(str(folder), OUT), tmp_path / "out", reporter=OUT)
    assert [file.readers for file in done.files] == [["diffusers"]] * len(EXPORTS.names())
    assert not (done.path / "comfyui.json").exists()
    said = (done.path / "README.md").read_text()
    assert not {"ComfyUI", "A1111", "sd-scripts", "ComfyUI:", "`models/loras`;"} & set(
        said[said.index("## Files") : said.index("## Recipe")].split()
    )
    for file in done.files:
        facts = describe_lora(file.path, read_header(file.path))
        assert [one["program"] for one in facts["programs"] if not one["reason"]] == ["diffusers"]


def test_comfyui_is_told_that_an_sd15_of_the_hub_predicts_velocities(originals, tmp_path, usual_shapes, monkeypatch):  # noqa: F811
    """A LoRA's export fetches no weights of its base: the configurations say it."""
    folder = shutil.copytree(originals["sd15"], tmp_path / "small-sd15")
    edit(folder, "scheduler/scheduler_config.json", prediction_type="v_prediction")
    asked = []

    def fetch(repo, revision, selection, reporter):
        asked.append(selection)
        return Snapshot(repo, "0" * 40, folder, ())

    monkeypatch.setattr("rapm_cli.bases.published.fetch", fetch)
    lora = write_lora(folder, tmp_path / "mine.safetensors")
    export(lora, find_base("org/small", OUT), tmp_path / "out", reporter=OUT)
    assert PIPELINE not in asked
    nodes = json.loads((tmp_path / "out" / "comfyui.json").read_text())
    (number,) = [k for k, node in nodes.items() if node["class_type"] == "ModelSamplingDiscrete"]
    assert nodes["6"]["inputs"]["model"] == [number, 0]


@pytest.mark.slow
def test_comfyui_and_a1111_find_every_layer_in_their_own_model(made, tmp_path):
    """Both look layers up by the model's own names, with underscores for dots; for SD 1.5 also by diffusers' names."""
    family, folder, lora = made
    base = find_base(str(folder), OUT)
    export(lora, base, tmp_path / "kohya.safetensors", reporter=OUT, formats=["kohya"])
    export(lora, base, tmp_path / "one.safetensors", reporter=OUT, fuse=True, single_file=True)
    state, start = load_file(tmp_path / "kohya.safetensors"), "model.diffusion_model."
    theirs = {
        f"lora_unet_{name.removeprefix(start).removesuffix('.weight').replace('.', '_')}": value.shape
        for name, value in load_file(tmp_path / "one.safetensors").items()
        if name.startswith(start) and name.endswith(".weight")
    }
    if family == "sd15":
        unet = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
        theirs = {
            f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}": value.shape for name, value in unet.items()
        }
    modules = {name.split(".")[0] for name in state}
    assert 3 * len(modules) == len(state)
    for name in modules:
        down, up = state[f"{name}.lora_down.weight"], state[f"{name}.lora_up.weight"]
        assert (up.shape[0], *down.shape[1:]) == tuple(theirs[name])
        assert state[f"{name}.alpha"] == RANK


@pytest.mark.slow
def test_names_are_those_of_kohyas_trainer(made, tmp_path):
    family, folder, lora = made
    export(lora, find_base(str(folder), OUT), tmp_path / "kohya.safetensors", reporter=OUT, formats=["kohya"])
    form = lora_forms.kohya_sgm if family == "sdxl" else lora_forms.kohya
    wanted = {name for module in load_lora(lora).modules for name in form(module)}
    assert {name for name in load_file(tmp_path / "kohya.safetensors") if not name.endswith(".alpha")} == wanted


@pytest.mark.slow
@pytest.mark.parametrize("where", ["out", "one.safetensors"])
def test_an_export_with_another_update_fails_and_leaves_no_file(made, tmp_path, monkeypatch, where):
    _, folder, lora = made
    real = exports.save_kohya

    def weaker(path, lora, target, dtype):
        real(path, LoraFile(lora.state, lora.rank, 0.99 * lora.alpha, lora.recipe), target, dtype)

    monkeypatch.setitem(EXPORTS._things, "kohya", weaker)
    with pytest.raises(VerificationError, match=r"_blocks?\."):
        export(lora, find_base(str(folder), OUT), tmp_path / where, reporter=OUT, formats=["kohya"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors"]


def test_an_update_that_16_bits_would_lose_is_refused(originals, tmp_path):  # noqa: F811
    lora = write_lora(originals["sdxl"], tmp_path / "mine.safetensors", 3e-6)
    base = find_base(str(originals["sdxl"]), OUT)
    for form in EXPORTS.names():
        with pytest.raises(VerificationError, match=r"_blocks?\.") as refused:
            export(lora, base, tmp_path / "half.safetensors", reporter=OUT, formats=[form], dtype="fp16")
        assert "--dtype fp32" in refused.value.remedy
        export(lora, base, tmp_path / f"{form}.safetensors", reporter=OUT, formats=[form], dtype="bf16")


def test_a_lora_of_another_base_and_contradictions_are_refused(originals, tmp_path):  # noqa: F811
    lora, base = write_lora(originals["sdxl"], tmp_path / "mine.safetensors"), find_base(str(originals["sd15"]), OUT)
    for form in EXPORTS.names():
        with pytest.raises(InputError, match=r"_blocks?\."):
            export(lora, base, tmp_path / "out", reporter=OUT, formats=[form])
    for options, named in (
        ({"formats": ["kohja"]}, "kohja"),
        ({"formats": ["kohya"], "fuse": True}, "--format"),
    ):
        with pytest.raises(ConfigError, match=named):
            export(lora, base, tmp_path / "out", reporter=OUT, **options)
    for options, named in (
        ({"formats": ["kohya", "diffusers"]}, "format"),
        ({"fuse": True}, "--fuse"),
    ):
        with pytest.raises(ConfigError, match=named):
            export(lora, base, tmp_path / "out.safetensors", reporter=OUT, **options)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.safetensors"]


READ_BY = {
    lora_forms.peft: ["diffusers"],
    lora_forms.peft_without_prefix: ["diffusers"],
    lora_forms.diffusers_new: ["diffusers"],
    lora_forms.diffusers_old: ["diffusers", "ComfyUI"],
    lora_forms.diffusers_mixed: ["diffusers"],
    lora_forms.kohya: ["diffusers", "ComfyUI", "A1111"],
    lora_forms.kohya_sgm: list(PROGRAMS),
}


@pytest.mark.parametrize("form", READ_BY)
def test_the_programs_that_read_a_form_follow_from_its_keys(form, tmp_path):
    path = lora_forms.write(tmp_path / "lora.safetensors", lora_forms.make_update("sdxl"), form)
    with safe_open(path, "pt") as file:
        names = list(file.keys())
    found = verdicts(names, {}, is_xl=True)
    assert [one.program for one in found if not one.reason] == READ_BY[form]
    assert [one.program for one in found] == list(PROGRAMS)


def test_comfyui_finds_what_its_table_has():
    """ComfyUI 0.3.64 itself finds as many: `python -m tests.clients --comfyui DIR`."""
    modules = [name for name, _ in lora_forms.network("sdxl").named_modules() if name.endswith(TARGET_MODULES)]
    attention = sum(map(lora_forms.is_attention, modules))
    found = {form: layers_found([form(module)[1] for module in modules]) for form in READ_BY}
    assert found.pop(lora_forms.peft) == found.pop(lora_forms.diffusers_new) == (len(modules) - attention, len(modules))
    assert found.pop(lora_forms.peft_without_prefix) == (len(modules) - attention, len(modules))
    assert found.pop(lora_forms.diffusers_mixed) == (len(modules) - attention, len(modules))
    for form in (lora_forms.peft_with_adapter, lora_forms.peft_wrapped):
        assert layers_found([form(module)[1] for module in modules]) == (0, len(modules))
    assert all(count == (len(modules), len(modules)) for count in found.values())
    lycoris = [lora_forms.kohya(module)[1].replace("lora_unet_", "lycoris_") for module in modules]
    assert layers_found(lycoris) == (len(modules), len(modules))


def test_a1111_hides_a_lora_whose_header_names_no_sdxl(tmp_path):
    names = [lora_forms.kohya_sgm("mid_block.attentions.0.proj_in")[0]]

    def reason(metadata, is_xl=True):
        return next(one.reason for one in verdicts(names, metadata, is_xl=is_xl) if one.program == "A1111")

    assert reason({"format": "pt"})
    assert reason({"ss_base_model_version": "sd_v1"})
    assert reason({"ss_base_model_version": "sdxl_base_v1-0"}) == reason({}) == reason({"format": "pt"}, False) == ""


def test_no_program_reads_a_file_without_a_lora(tmp_path):
    save_file({"weight": torch.zeros(1)}, tmp_path / "x.safetensors")
    assert all(one.reason for one in verdicts(["weight"], {}, is_xl=True))

"""Our LoRAs and fused folders, loaded by plain diffusers, on the demo base in float32."""

import json

import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from rapm_cli.bases import BASES, LoadedBase, find_base
from rapm_cli.cli.console import Output
from rapm_cli.core.common.errors import DiskError, InputError
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.network.student import TARGET_MODULES, attach_lora, lora_weights
from rapm_cli.core.storage.commit import verify
from rapm_cli.export.export import export
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import LoraFile, apply_lora, load_lora, save_lora
from rapm_cli.generate.generate import pipeline_noise
from tests.conftest import authors_scheduler
from tests.formats import lora_forms

OUT = Output(quiet=True)
PROMPT = "a large red cube left of a small blue sphere at dawn"
RECIPE = {"base": "demo"}


def pipeline(folder):
    """Return the pipeline of the authors' README, on the demo base."""
    pipe = StableDiffusionXLPipeline.from_pretrained(
        folder,
        scheduler=authors_scheduler(),
        dtype=torch.float32,
        add_watermarker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def sample_with_diffusers(pipe):
    out = pipe(
        prompt=PROMPT,
        generator=torch.Generator().manual_seed(50),
        num_inference_steps=4,
        guidance_scale=1.0,
        output_type="pt",
    )
    return out.images


ALPHAS = {"alpha=rank": (2, 2.0), "alpha≠rank": (3, 7.5)}


@pytest.fixture(scope="module", params=[pytest.param("alpha=rank", marks=pytest.mark.slow), "alpha≠rank"])
def path(request, tmp_path_factory):
    """The file of a LoRA with large random weights."""
    rank, alpha = ALPHAS[request.param]
    loaded = LoadedBase(BASES["demo"].locate(OUT), torch.device("cpu"), torch.float32)
    attach_lora(loaded.backbone, rank, alpha)
    generator = torch.Generator().manual_seed(1)
    weights = lora_weights(loaded.backbone)
    for parameter in weights.masters.values():
        parameter.data.copy_(0.08 * torch.randn(parameter.shape, generator=generator))
    path = tmp_path_factory.mktemp("lora") / "lora.safetensors"
    save_lora(path, LoraFile(weights.state(), rank, alpha, RECIPE))
    return path


@pytest.fixture(scope="module")
def ours(path):
    """The image that rapm samples with the LoRA."""
    loaded = LoadedBase(BASES["demo"].locate(OUT), torch.device("cpu"), torch.float32)
    apply_lora(loaded.backbone, load_lora(path), path)
    noise = pipeline_noise([50], loaded.latent_shape, torch.device("cpu"), torch.float32)
    latent = sample_student(loaded.backbone.student, noise, loaded.encode([PROMPT]), 4)[0]
    return loaded.decode(latent)


@pytest.mark.slow
def test_diffusers_samples_our_image_from_our_file(path, ours):
    pipe = pipeline(BASES["demo"].locate(OUT).folder)
    without = sample_with_diffusers(pipe)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    torch.testing.assert_close(sample_with_diffusers(pipe), ours, rtol=0, atol=1e-4)
    assert (without - ours).abs().max() > 0.1


@pytest.mark.slow
def test_diffusers_samples_our_image_from_every_format(path, ours, tmp_path):
    done = export(path, BASES["demo"], tmp_path / "out", reporter=OUT)
    lora = load_lora(path)
    halves = {module: [lora.state[f"{module}.lora_{half}.weight"] for half in "AB"] for module in lora.modules}
    blocks = lora_forms.write(tmp_path / "blocks.safetensors", halves, lora_forms.kohya, alphas=lora.alpha)
    for file in (*(one.path for one in done.files), blocks):  # kohya's by the original code's blocks, and diffusers'
        pipe = pipeline(BASES["demo"].locate(OUT).folder)
        pipe.load_lora_weights(str(file.parent), weight_name=file.name, use_safetensors=True)
        torch.testing.assert_close(sample_with_diffusers(pipe), ours, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_diffusers_samples_our_image_from_a_fused_folder(path, ours, tmp_path):
    done = export(path, BASES["demo"], tmp_path / "fused", fuse=True, dtype="fp32", reporter=OUT)
    assert done.report is not None
    assert done.report.worst_lost < 1e-5
    torch.testing.assert_close(sample_with_diffusers(pipeline(tmp_path / "fused")), ours, rtol=0, atol=1e-4)
    index = json.loads((tmp_path / "fused" / "model_index.json").read_text())
    assert index["scheduler"] == ["diffusers", "DDIMScheduler"]
    assert (
        json.loads((tmp_path / "fused" / "scheduler" / "scheduler_config.json").read_text())["timestep_spacing"]
        == "trailing"
    )


@pytest.mark.slow
def test_a_fused_folder_in_16_bits_stays_close_and_reports_the_rounding_loss(path, ours, tmp_path):
    done = export(path, BASES["demo"], tmp_path / "fused", fuse=True, dtype="base", reporter=OUT)
    assert done.report is not None
    assert 1e-5 < done.report.mean_lost <= done.report.worst_lost
    fused = sample_with_diffusers(pipeline(tmp_path / "fused"))
    assert (fused - ours).abs().mean() < 0.01


def test_our_update_equals_pefts(path):
    from peft.tuners.lora import LoraLayer

    loaded = LoadedBase(BASES["demo"].locate(OUT), torch.device("cpu"), torch.float32)
    lora = load_lora(path)
    apply_lora(loaded.backbone, lora, path)
    checked = 0
    for name, module in loaded.backbone.unet.named_modules():
        if isinstance(module, LoraLayer):
            mine = lora_update(
                lora.state[f"{name}.lora_A.weight"], lora.state[f"{name}.lora_B.weight"], lora.alpha / lora.rank
            )
            torch.testing.assert_close(mine, module.get_delta_weight("default"), rtol=1e-4, atol=1e-6)
            checked += 1
    assert 2 * checked == len(lora.state) > 200


def test_a_file_comes_back_as_it_was_written(path):
    lora = load_lora(path)
    assert lora.recipe == RECIPE
    assert path.stat().st_mode & 0o044  # other users may read it; safetensors' own writer does not allow that
    again = path.with_name("again.safetensors")
    save_lora(again, lora)
    assert load_lora(again).state.keys() == lora.state.keys()
    assert any(name.endswith(tuple(f"{module}.lora_A.weight" for module in TARGET_MODULES)) for name in lora.state)


def test_the_scale_is_in_b_and_the_header_has_what_every_diffusers_asks_for(path):
    """diffusers 0.33 ignores alpha; 0.34 to 0.39 raise KeyError without the patterns."""
    from safetensors.torch import load_file

    rank = load_lora(path).rank
    said = {name.removeprefix("unet."): value for name, value in json.loads(adapter_header(path)).items()}
    assert (said["r"], said["lora_alpha"], said["rank_pattern"], said["alpha_pattern"]) == (rank, rank, {}, {})
    assert all(name.startswith("unet.") for name in load_file(path))


def adapter_header(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()["lora_adapter_metadata"]


def test_a_file_with_alpha_in_its_header_is_read_at_its_strength(tmp_path):
    """As rapm wrote them before: alpha is not the rank, the patterns are missing, and B is not scaled."""
    from safetensors.torch import save_file

    down, up = torch.randn(2, 6), torch.randn(5, 2)
    state = {"unet.mid_block.to_q.lora_A.weight": down, "unet.mid_block.to_q.lora_B.weight": up}
    adapter = {"unet.r": 2, "unet.lora_alpha": 7.0, "unet.target_modules": ["to_q"], "unet.lora_dropout": 0.0}
    header = {"format": "pt", "lora_adapter_metadata": json.dumps(adapter), "rapm_recipe": json.dumps(RECIPE)}
    save_file(state, tmp_path / "before.safetensors", header)
    before = load_lora(tmp_path / "before.safetensors")
    save_lora(tmp_path / "after.safetensors", before)
    after = load_lora(tmp_path / "after.safetensors")
    for lora, alpha in ((before, 7.0), (after, 2.0)):
        half = {name[-8]: value for name, value in lora.state.items()}
        torch.testing.assert_close(lora_update(half["A"], half["B"], lora.alpha / lora.rank), 3.5 * up @ down)
        assert (lora.rank, lora.alpha) == (2, alpha)


def test_an_export_never_overwrites(path, tmp_path):
    (tmp_path / "there").mkdir()
    with pytest.raises(InputError, match="there"):
        export(path, BASES["demo"], tmp_path / "there", fuse=True, dtype="base", reporter=OUT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["there"]


@pytest.mark.slow
def test_a_fused_export_can_be_a_base_and_no_file_is_overwritten(path, tmp_path, monkeypatch):
    export(path, BASES["demo"], tmp_path / "fused", fuse=True, dtype="base", reporter=OUT)
    export(path, find_base(str(tmp_path / "fused"), OUT), tmp_path / "twice", fuse=True, dtype="base", reporter=OUT)
    for name in ("fused", "twice"):
        assert "rapm_recipe.json" in verify(tmp_path / name).files
    monkeypatch.setattr("rapm_cli.export.export.build_sidecars", lambda *_, **__: (tmp_path / "mine").mkdir() or {})
    with pytest.raises(InputError, match="mine"):
        export(path, BASES["demo"], tmp_path / "mine", fuse=True, dtype="base", reporter=OUT)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["fused", "mine", "twice"]


def test_an_export_waits_a_bounded_time_for_disk_space(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("rapm_cli.runs.retry.WAITS", (0.0, 0.0))
    monkeypatch.setattr("rapm_cli.core.storage.room.free_bytes", lambda place: 0)
    with pytest.raises(DiskError, match=r"new\.safetensors"):
        export(path, BASES["demo"], tmp_path / "new.safetensors", dtype="base", reporter=OUT)
    assert len(capsys.readouterr().err.splitlines()) == 2  # one warning for each wait
    assert list(tmp_path.iterdir()) == []


def test_a_lora_with_nan_is_refused(path, tmp_path):
    lora = load_lora(path)
    state = dict(lora.state)
    name = next(iter(state))
    state[name] = torch.full_like(state[name], float("nan"))
    from safetensors.torch import safe_open, save_file

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    save_file({f"unet.{key}": value for key, value in state.items()}, tmp_path / "nan.safetensors", metadata)
    with pytest.raises(InputError, match=r"nan\.safetensors"):
        load_lora(tmp_path / "nan.safetensors")


def test_a_lora_of_another_network_is_refused(path, tmp_path, backbone):
    with pytest.raises(InputError, match=path.name):
        apply_lora(backbone, load_lora(path), path)

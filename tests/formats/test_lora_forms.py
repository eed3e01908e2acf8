"""LoRA files under every form of keys, read by us and by diffusers, on the same network in float32."""

import copy
import json
import re

import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.schedule import NoiseSchedule
from rapm_cli.core.network.student import TARGET_MODULES
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import apply_lora, load_lora, save_lora
from tests.formats.lora_forms import (
    ALPHA,
    NETWORKS,
    RANK,
    diffusers_mixed,
    diffusers_new,
    diffusers_old,
    diffusers_old_without_prefix,
    kohya,
    kohya_sgm,
    make_update,
    network,
    peft,
    peft_with_adapter,
    peft_without_prefix,
    peft_wrapped,
    settings_of,
    write,
)


def pipeline(name):
    """Return diffusers' pipeline with a copy of the network and no other parts."""
    rest = dict.fromkeys(("vae", "text_encoder", "tokenizer"))
    unet, scheduler = copy.deepcopy(network(name)), EulerDiscreteScheduler(steps_offset=1)
    if name == "sdxl":
        return StableDiffusionXLPipeline(
            **rest, text_encoder_2=None, tokenizer_2=None, unet=unet, scheduler=scheduler, add_watermarker=False
        )
    return StableDiffusionPipeline(
        **rest, unet=unet, scheduler=scheduler, safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def cond(name):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 5, 12, generator=generator)
    if name == "sd15":
        return Conditioning(tokens)
    return Conditioning(tokens, torch.randn(2, 10, generator=generator), torch.ones(2, 6))


@torch.no_grad()
def run_unet(name, unet, *, is_ours):
    """Return the network's output, and the LoRA's update of each layer."""
    backbone = Backbone(unet, NoiseSchedule.scaled_linear()) if not is_ours else unet
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser = backbone.student if is_ours else backbone.teacher
    out = denoiser(z, 500, cond(name))
    deltas = {
        module: layer.get_delta_weight(layer.active_adapters[0]).float()
        for module, layer in backbone.unet.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return out, deltas


def ours(name, path):
    backbone = Backbone(copy.deepcopy(network(name)), NoiseSchedule.scaled_linear())
    lora = load_lora(path)
    apply_lora(backbone, lora, path)
    return run_unet(name, backbone, is_ours=True)


def theirs(name, path):
    pipe = pipeline(name)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    return run_unet(name, pipe.unet, is_ours=False)


def assert_same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-5, atol=1e-5)
    assert found[1].keys() == expected[1].keys()
    for module, delta in found[1].items():
        torch.testing.assert_close(
            delta, expected[1][module], rtol=1e-5, atol=1e-5, msg=lambda m, k=module: f"{k}: {m}"
        )


def assert_update(found, update, scale=lambda module: 1.0):
    assert found[1].keys() == update.keys()
    for module, (down, up) in update.items():
        torch.testing.assert_close(found[1][module], lora_update(down, up, scale(module)), rtol=1e-5, atol=1e-5)


def differs_from_base(name, found):
    base = run_unet(name, copy.deepcopy(network(name)), is_ours=False)[0]
    return (found[0] - base).abs().max() > 0.01


def assert_as_diffusers(name, path, update, scale=lambda module: 1.0):
    """Assert that our update equals the written one and diffusers'."""
    found = ours(name, path)
    assert differs_from_base(name, found)
    assert_update(found, update, scale)
    assert_same(found, theirs(name, path))


FORMS = [peft, diffusers_new, diffusers_old, kohya]
# Diffusers loads nothing from these, or a part of mixed files, without an error.
SKIPPED_BY_DIFFUSERS = [
    peft_with_adapter,
    peft_without_prefix,
    peft_wrapped,
    diffusers_mixed,
    diffusers_old_without_prefix,
]


@pytest.mark.parametrize("has_alpha", [pytest.param(False, marks=pytest.mark.slow), True], ids=["no alpha", "alpha"])
@pytest.mark.parametrize(
    ("name", "form"),
    [
        *(("sd15", form) for form in (peft, kohya)),
        *(pytest.param("sd15", form, marks=pytest.mark.slow) for form in (diffusers_new, diffusers_old)),
        *(pytest.param("sdxl", form, marks=pytest.mark.slow) for form in (*FORMS, kohya_sgm)),
    ],
)
def test_every_form_is_read_as_diffusers_reads_it(name, form, has_alpha, tmp_path):
    update, is_kohya = make_update(name), form in (kohya, kohya_sgm)
    alphas = ALPHA if has_alpha and is_kohya else None
    header = settings_of(update) if has_alpha and not is_kohya else None
    path = write(tmp_path / "lora.safetensors", update, form, alphas, header)
    assert_as_diffusers(name, path, update, lambda module: ALPHA / RANK if has_alpha else 1.0)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("form", SKIPPED_BY_DIFFUSERS)
def test_forms_that_diffusers_skips_are_read_as_the_plain_one(name, form, tmp_path):
    """The plain form is compared with diffusers above."""
    update = make_update(name)
    plain, other = (
        write(tmp_path / f"{one.__name__}.safetensors", update, one, header=settings_of(update)) for one in (peft, form)
    )
    assert load_lora(other).digest() == load_lora(plain).digest()


@pytest.mark.slow
def test_settings_without_a_prefix_belong_to_the_unet(tmp_path):
    update = make_update("sdxl")
    header = json.dumps(settings_of(update))
    state = load_file(write(tmp_path / "lora.safetensors", update, peft_without_prefix))
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": header})  # as save_lora_adapter does
    assert_update(ours("sdxl", tmp_path / "lora.safetensors"), update, lambda module: ALPHA / RANK)


def rank_of(module):
    return 5 if "conv" in module else 2 if module.endswith(".to_k") else RANK


@pytest.mark.slow
@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_rank_and_alpha_patterns_and_rslora_follow_peft(name, use_rslora, tmp_path):
    update = make_update(name, rank_of)
    ranks = {"to_k": 2} | {module: rank_of(module) for module in update if "conv" in module}
    alphas = {"attn1.to_q": 2.0, "to_q": 4.0, "^conv_in": 1.5}  # the first match wins
    header = settings_of(update, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
    path = write(tmp_path / "lora.safetensors", update, peft, header=header)

    def scale(module):
        alpha = 1.5 if module == "conv_in" else ALPHA
        if module.endswith(".to_q"):
            alpha = 2.0 if "attn1" in module else 4.0
        return alpha / (rank_of(module) ** 0.5 if use_rslora else rank_of(module))

    assert_as_diffusers(name, path, update, scale)


@pytest.mark.slow
@pytest.mark.parametrize("form", [peft, kohya, kohya_sgm])
def test_mixed_ranks_change_no_update(form, tmp_path):
    update = make_update("sdxl", rank_of)
    path = write(tmp_path / "lora.safetensors", update, form)
    assert_as_diffusers("sdxl", path, update)
    lora = load_lora(path)
    assert (lora.rank, lora.alpha, lora.recipe) == (5, 5.0, {})


@pytest.mark.slow
def test_each_alpha_of_kohya_scales_its_own_layer(tmp_path):
    """Kohya's trainer and ComfyUI do the same; diffusers 0.42 uses the most common alpha for all attention layers."""
    update = make_update("sdxl", rank_of)
    alphas = {module: 0.5 + k % 4 for k, module in enumerate(update)}
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas)
    assert_update(ours("sdxl", path), update, lambda module: alphas[module] / rank_of(module))


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_for_attention_alone_leaves_other_layers_alone(name, tmp_path):
    update = make_update(name, ends=("to_q", "to_k", "to_v", "to_out.0"))
    assert_as_diffusers(name, write(tmp_path / "lora.safetensors", update, diffusers_old), update)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_scale_of_16_bit_weights_is_folded_in_32_bits(dtype, tmp_path):
    update = make_update("sdxl")
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas=ALPHA, dtype=dtype)
    rounded = {module: tuple(half.to(dtype).float() for half in halves) for module, halves in update.items()}
    assert_as_diffusers("sdxl", path, rounded, lambda module: ALPHA / RANK)


def of_some_kinds():
    return make_update("sdxl", rank_of, ends=("to_q", "to_k", "conv1"))


def of_more_kinds_than_ours():
    return make_update("sdxl", rank_of)


def of_every_kind_in_some_blocks():
    """Leave out one layer of each kind, so that diffusers must not look for every layer of a kind."""
    update = make_update("sdxl", ends=TARGET_MODULES)
    for kind in TARGET_MODULES:
        layers = [module for module in update if f".{module}".endswith(f".{kind}")]
        update.pop(layers[0]) if len(layers) > 1 else None
    return update


@pytest.mark.slow
@pytest.mark.parametrize("make", [of_some_kinds, of_more_kinds_than_ours, of_every_kind_in_some_blocks])
def test_diffusers_reads_the_same_update_after_a_rewrite(make, tmp_path):
    update = make()
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas=ALPHA)
    again = tmp_path / "again.safetensors"
    save_lora(again, load_lora(path))
    assert_same(theirs("sdxl", again), ours("sdxl", path))
    assert load_lora(again).digest() == load_lora(path).digest()


@pytest.mark.slow
def test_a_layer_under_two_names_counts_once_and_must_be_equal(tmp_path):
    update = make_update("sdxl")
    both = load_file(write(tmp_path / "a.safetensors", update, kohya, alphas=ALPHA))
    both |= load_file(write(tmp_path / "b.safetensors", update, kohya_sgm, alphas=ALPHA))
    save_file(both, tmp_path / "both.safetensors")
    assert_as_diffusers("sdxl", tmp_path / "both.safetensors", update, lambda module: ALPHA / RANK)
    both["lora_unet_middle_block_0_in_layers_2.alpha"] = torch.tensor(1.0)
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(InputError, match=r"mid_block\.resnets\.0\.conv1"):
        load_lora(tmp_path / "both.safetensors")


@pytest.mark.parametrize(
    ("layer", "down", "up"),
    [
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_down", "lora_up"),
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_down", "lora_up"),
        ("text_encoder.text_model.encoder.layers.0.mlp.fc1", "lora_A", "lora_B"),
        ("text_encoder.text_model.encoder.layers.0.self_attn", "to_q_lora.down", "to_q_lora.up"),
        ("text_encoder_2.text_model.encoder.layers.0.mlp.fc1", "lora_linear_layer.down", "lora_linear_layer.up"),
    ],
)
def test_text_encoder_updates_are_skipped_if_zero_and_refused_otherwise(layer, down, up, tmp_path):
    down, up = f"{layer}.{down}.weight", f"{layer}.{up}.weight"
    names = (kohya if layer.startswith("lora_te") else peft)("conv_in")
    state, path = dict(zip(names, make_update("sdxl")["conv_in"], strict=True)), tmp_path / "lora.safetensors"
    save_file(state | {down: torch.ones(2, 4), up: torch.zeros(4, 2)}, path)
    assert load_lora(path).modules == ["conv_in"]
    save_file(state | {down: torch.ones(2, 4), up: torch.ones(4, 2)}, path)
    with pytest.raises(InputError, match=re.escape(up)):
        load_lora(path)


def test_a_layer_that_the_base_lacks_is_named(tmp_path):
    path = write(tmp_path / "lora.safetensors", make_update("sd15"), kohya)
    with pytest.raises(InputError, match=r"down_blocks\.0\.attentions\.0\."):
        ours("sdxl", path)

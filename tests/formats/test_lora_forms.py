"""Every form of LoRA file, written here, read by us and by diffusers, on the same network in float32."""

import copy
import json
import re
from functools import cache

import diffusers
import pytest
import torch
from diffusers import EulerDiscreteScheduler, StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file

from rapm_cli.core.backbone import Backbone, Conditioning
from rapm_cli.core.errors import InputError
from rapm_cli.core.schedule import NoiseSchedule
from rapm_cli.core.student import TARGET_MODULES
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.lora import apply_lora, load_lora, save_lora
from tests.conftest import tiny_sd15_unet, tiny_unet

EXTRA = ("conv_in", "conv_out", "time_embedding.linear_1")  # rapm trains none of these, others do
NETWORKS = {"sdxl": lambda: tiny_unet(layers_per_block=2), "sd15": tiny_sd15_unet}
RANK, ALPHA = 3, 7.5


@pytest.fixture(autouse=True)
def _quiet():
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity_warning()


@cache
def network(name):
    return NETWORKS[name]()


def pipeline(name):
    """Diffusers' pipeline around a copy of the network, with nothing else in it."""
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


def make_update(name, rank=RANK, ends=(*TARGET_MODULES, *EXTRA)):
    """Random halves for each layer of these kinds; `rank` is a number, or a function of the layer's name."""
    generator, update = torch.Generator().manual_seed(5), {}
    for module, layer in network(name).named_modules():
        if hasattr(layer, "weight") and f".{module}".endswith(tuple(f".{end}" for end in ends)):
            r = rank(module) if callable(rank) else rank
            shape = layer.weight.shape
            down = 0.1 * torch.randn(r, *shape[1:], generator=generator)
            up = 0.1 * torch.randn(shape[0], r, *[1] * (len(shape) - 2), generator=generator)
            update[module] = down, up
    return update


def is_attention(module):
    return bool(re.search(r"\.to_(q|k|v|out\.0)$", module))


def peft(module):
    return f"unet.{module}.lora_A.weight", f"unet.{module}.lora_B.weight"


def peft_without_prefix(module):
    return f"{module}.lora_A.weight", f"{module}.lora_B.weight"


def peft_wrapped(module):
    return f"base_model.model.{module}.lora_A.default.weight", f"base_model.model.{module}.lora_B.default.weight"


def peft_with_adapter(module):
    return f"unet.{module}.lora_A.my-adapter.weight", f"unet.{module}.lora_B.my-adapter.weight"


def diffusers_new(module):
    return f"unet.{module}.lora.down.weight", f"unet.{module}.lora.up.weight"


def diffusers_mixed(module):
    """What `convert_state_dict_to_diffusers` leaves: attention in diffusers' keys, the rest in peft's."""
    return diffusers_new(module) if is_attention(module) else peft(module)


def diffusers_old(module):
    """Of attention processors: to_q's weights were the processor's."""
    if not is_attention(module):
        return diffusers_new(module)
    attention, name = re.fullmatch(r"(.*)\.(to_\w+)(?:\.0)?", module).groups()
    return tuple(f"unet.{attention}.processor.{name}_lora.{half}.weight" for half in ("down", "up"))


def diffusers_old_without_prefix(module):
    return tuple(name.removeprefix("unet.") for name in diffusers_old(module))


def kohya(module):
    name = f"lora_unet_{module.replace('.', '_')}"
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def kohya_sgm(module):
    """By the blocks of SDXL's original code, as kohya's trainer writes."""
    inside = {
        "conv1": "in_layers.2", "conv2": "out_layers.3", "time_emb_proj": "emb_layers.1",
        "conv_shortcut": "skip_connection",
    }  # fmt: skip
    outside = {"conv_in": "input_blocks.0.0", "conv_out": "out.2", "time_embedding.linear_1": "time_embed.0"}
    kind, i, layer, j, rest = re.fullmatch(
        r"(down|mid|up)_block(?:s\.(\d))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", module
    ).groups() if module not in outside else (None,) * 5  # fmt: skip
    match kind, layer:
        case None, _:
            place, rest = outside[module], ""
        case "mid", "attentions":
            place = "middle_block.1"
        case "mid", _:
            place = f"middle_block.{2 * int(j)}"
        case "down", "downsamplers":
            place, rest = f"input_blocks.{3 * int(i) + 3}.0", "op"
        case "up", "upsamplers":
            place = f"output_blocks.{3 * int(i) + 2}.2"
        case _:
            side, shift = ("input", 1) if kind == "down" else ("output", 0)
            place = f"{side}_blocks.{3 * int(i) + int(j) + shift}.{int(layer == 'attentions')}"
    return kohya(f"{place}.{inside.get(rest, rest)}".rstrip("."))


def write(path, update, form, alphas=None, header=None, dtype=torch.float32):
    """One file.

    Args:
        path: Of the file.
        update: Halves by layer.
        form: Layer to the names of its halves.
        alphas: By layer, written as tensors; a number is everyone's.
        header: Peft's settings, for the header.
        dtype: Of the halves.
    """
    state = {}
    for module, halves in update.items():
        names = form(module)
        state |= {name: value.to(dtype).contiguous() for name, value in zip(names, halves, strict=True)}
        if alphas is not None:
            alpha = alphas[module] if isinstance(alphas, dict) else alphas
            state[names[0].replace(".lora_down.weight", ".alpha")] = torch.tensor(alpha)
    metadata = {"format": "pt"}
    if header is not None:
        metadata["lora_adapter_metadata"] = json.dumps({f"unet.{name}": value for name, value in header.items()})
    save_file(state, path, metadata)
    return path


def settings_of(update, **more):
    return {"r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(update), "lora_dropout": 0.0, **more}


def cond(name):
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randn(2, 5, 12, generator=generator)
    if name == "sd15":
        return Conditioning(tokens)
    return Conditioning(tokens, torch.randn(2, 10, generator=generator), torch.ones(2, 6))


@torch.no_grad()
def look(name, unet, *, is_ours):
    """The network's output, and what its LoRA adds to each layer."""
    backbone = Backbone(unet, NoiseSchedule.scaled_linear()) if not is_ours else unet
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with backbone.role(student=is_ours):
        out = backbone.predict_noise(z, 500, cond(name))
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
    return look(name, backbone, is_ours=True)


def theirs(name, path):
    pipe = pipeline(name)
    pipe.load_lora_weights(str(path.parent), weight_name=path.name, use_safetensors=True)
    return look(name, pipe.unet, is_ours=False)


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
    base = look(name, copy.deepcopy(network(name)), is_ours=False)[0]
    return (found[0] - base).abs().max() > 0.01


def assert_as_diffusers(name, path, update, scale=lambda module: 1.0):
    """Ours is what was written, and what diffusers makes of the file."""
    found = ours(name, path)
    assert differs_from_base(name, found)
    assert_update(found, update, scale)
    assert_same(found, theirs(name, path))


FORMS = [peft, diffusers_new, diffusers_old, kohya]
# Of these diffusers loads nothing, or of mixed files a part, without an error.
PASSED_OVER = [peft_with_adapter, peft_without_prefix, peft_wrapped, diffusers_mixed, diffusers_old_without_prefix]


@pytest.mark.parametrize("has_alpha", [False, True], ids=["no alpha", "alpha"])
@pytest.mark.parametrize(
    ("name", "form"), [*((name, form) for name in NETWORKS for form in FORMS), ("sdxl", kohya_sgm)]
)
def test_every_form_is_read_as_diffusers_reads_it(name, form, has_alpha, tmp_path):
    update, is_kohya = make_update(name), form in (kohya, kohya_sgm)
    alphas = ALPHA if has_alpha and is_kohya else None
    header = settings_of(update) if has_alpha and not is_kohya else None
    path = write(tmp_path / "lora.safetensors", update, form, alphas, header)
    assert_as_diffusers(name, path, update, lambda module: ALPHA / RANK if has_alpha else 1.0)


@pytest.fixture(scope="module", params=NETWORKS)
def plain(request, tmp_path_factory):
    """A network's name, and what diffusers makes of the plain form of its update."""
    update = make_update(request.param)
    path = tmp_path_factory.mktemp("plain") / "lora.safetensors"
    return request.param, theirs(request.param, write(path, update, peft, header=settings_of(update)))


@pytest.mark.parametrize("form", PASSED_OVER)
def test_forms_that_diffusers_passes_over_are_read_as_the_plain_one(plain, form, tmp_path):
    name, expected = plain
    update = make_update(name)
    path = write(tmp_path / "lora.safetensors", update, form, header=settings_of(update))
    assert_same(ours(name, path), expected)


def test_settings_without_a_prefix_are_the_unets(tmp_path):
    update = make_update("sdxl")
    header = json.dumps(settings_of(update))
    state = load_file(write(tmp_path / "lora.safetensors", update, peft_without_prefix))
    save_file(state, tmp_path / "lora.safetensors", {"lora_adapter_metadata": header})  # as save_lora_adapter does
    assert_update(ours("sdxl", tmp_path / "lora.safetensors"), update, lambda module: ALPHA / RANK)


def rank_of(module):
    return 5 if "conv" in module else 2 if module.endswith(".to_k") else RANK


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_patterns_of_ranks_and_alphas_and_rslora_are_peft_s(name, use_rslora, tmp_path):
    update = make_update(name, rank_of)
    ranks = {"to_k": 2} | {module: rank_of(module) for module in update if "conv" in module}
    alphas = {"attn1.to_q": 2.0, "to_q": 4.0, "^conv_in": 1.5}  # the first that fits counts
    header = settings_of(update, rank_pattern=ranks, alpha_pattern=alphas, use_rslora=use_rslora)
    path = write(tmp_path / "lora.safetensors", update, peft, header=header)

    def scale(module):
        alpha = 1.5 if module == "conv_in" else ALPHA
        if module.endswith(".to_q"):
            alpha = 2.0 if "attn1" in module else 4.0
        return alpha / (rank_of(module) ** 0.5 if use_rslora else rank_of(module))

    assert_as_diffusers(name, path, update, scale)


@pytest.mark.parametrize("form", [peft, kohya, kohya_sgm])
def test_other_ranks_in_some_layers_change_no_product(form, tmp_path):
    update = make_update("sdxl", rank_of)
    path = write(tmp_path / "lora.safetensors", update, form)
    assert_as_diffusers("sdxl", path, update)
    lora = load_lora(path)
    assert (lora.rank, lora.alpha, lora.recipe) == (5, 5.0, {})


def test_every_alpha_of_kohya_counts_for_its_own_layer(tmp_path):
    """As in kohya's trainer and ComfyUI; diffusers 0.42 takes the commonest one for all attention layers."""
    update = make_update("sdxl", rank_of)
    alphas = {module: 0.5 + k % 4 for k, module in enumerate(update)}
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas)
    assert_update(ours("sdxl", path), update, lambda module: alphas[module] / rank_of(module))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_file_for_attention_alone_leaves_other_layers_alone(name, tmp_path):
    update = make_update(name, ends=("to_q", "to_k", "to_v", "to_out.0"))
    assert_as_diffusers(name, write(tmp_path / "lora.safetensors", update, diffusers_old), update)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sixteen_bits_are_folded_in_thirty_two(dtype, tmp_path):
    update = make_update("sdxl")
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas=ALPHA, dtype=dtype)
    rounded = {module: tuple(half.to(dtype).float() for half in halves) for module, halves in update.items()}
    assert_as_diffusers("sdxl", path, rounded, lambda module: ALPHA / RANK)


def of_some_kinds():
    return make_update("sdxl", rank_of, ends=("to_q", "to_k", "conv1"))


def of_more_kinds_than_ours():
    return make_update("sdxl", rank_of)


def of_every_kind_in_some_blocks():
    """Of each kind one layer is left out, where diffusers must not look for it."""
    update = make_update("sdxl", ends=TARGET_MODULES)
    for kind in TARGET_MODULES:
        layers = [module for module in update if f".{module}".endswith(f".{kind}")]
        update.pop(layers[0]) if len(layers) > 1 else None
    return update


@pytest.mark.parametrize("make", [of_some_kinds, of_more_kinds_than_ours, of_every_kind_in_some_blocks])
def test_what_was_read_and_written_again_is_the_same_to_diffusers(make, tmp_path):
    update = make()
    path = write(tmp_path / "lora.safetensors", update, kohya_sgm, alphas=ALPHA)
    again = tmp_path / "again.safetensors"
    save_lora(again, load_lora(path))
    assert_same(theirs("sdxl", again), ours("sdxl", path))
    assert load_lora(again).digest() == load_lora(path).digest()


def test_one_layer_under_two_names_counts_once_and_must_be_the_same(tmp_path):
    update = make_update("sdxl")
    both = load_file(write(tmp_path / "a.safetensors", update, kohya, alphas=ALPHA))
    both |= load_file(write(tmp_path / "b.safetensors", update, kohya_sgm, alphas=ALPHA))
    save_file(both, tmp_path / "both.safetensors")
    assert_as_diffusers("sdxl", tmp_path / "both.safetensors", update, lambda module: ALPHA / RANK)
    both["lora_unet_middle_block_0_in_layers_2.alpha"] = torch.tensor(1.0)
    save_file(both, tmp_path / "both.safetensors")
    with pytest.raises(InputError, match=r"two different values for mid_block\.resnets\.0\.conv1"):
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
def test_a_part_for_text_encoders_is_left_out_where_it_is_zero_and_refused_elsewhere(layer, down, up, tmp_path):
    down, up = f"{layer}.{down}.weight", f"{layer}.{up}.weight"
    names = (kohya if layer.startswith("lora_te") else peft)("conv_in")
    state, path = dict(zip(names, make_update("sdxl")["conv_in"], strict=True)), tmp_path / "lora.safetensors"
    save_file(state | {down: torch.ones(2, 4), up: torch.zeros(4, 2)}, path)
    assert load_lora(path).modules == ["conv_in"]
    save_file(state | {down: torch.ones(2, 4), up: torch.ones(4, 2)}, path)
    with pytest.raises(InputError, match="also changes a text encoder, first by '" + re.escape(up)):
        load_lora(path)


LAYER = "unet.mid_block.resnets.0.conv1"
HALVES = {f"{LAYER}.lora_A.weight": torch.ones(2, 16, 3, 3), f"{LAYER}.lora_B.weight": torch.ones(16, 2, 1, 1)}
SETTINGS = {"r": 2, "lora_alpha": 2.0}


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"lora_unet_mid_block_resnets_0_conv1.dora_scale": torch.ones(16, 1)}, "but a DoRA"),
        ({f"{LAYER}.lora_magnitude_vector.weight": torch.ones(16)}, "but a DoRA"),
        ({"lora_unet_mid_block_resnets_0_conv1.hada_w1_a": torch.ones(16, 2)}, "but a LoHa"),
        ({"lora_unet_mid_block_resnets_0_conv1.lokr_w1": torch.ones(4, 4)}, "but a LoKr"),
        ({"lora_unet_mid_block_resnets_0_conv1.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "with a core tensor"),
        ({"lora_unet_mid_block_resnets_0_conv1.diff": torch.ones(16, 16)}, "with whole weights"),
        ({f"{LAYER}.lora_B.bias": torch.ones(16)}, "with biases"),
        ({"diffusion_model.input_blocks.1.0.in_layers.2.lora_A.weight": torch.ones(2, 2)}, "ComfyUI's own keys"),
        ({f"{LAYER}.lora_x.weight": torch.ones(2, 2)}, "not one of a UNet's LoRA"),
        ({"unet.conv_in.lora_A.weight": torch.ones(2, 4, 3, 3)}, "lacks half of conv_in"),
        ({"unet.conv_in.alpha": torch.tensor(1.0)}, "lacks half of conv_in"),
        ({"lora_unet_conv_in.lora_down.weight": torch.ones(2, 4, 3, 3)}, "diffusers cannot map"),
        ({"lora_unet_input_blocks_x.lora_down.weight": torch.ones(2, 4)}, "diffusers cannot map"),
        ({f"{LAYER}.lora_A.other.weight": torch.zeros(2, 16, 3, 3)}, "two different values"),
        ({f"{LAYER}.lora_B.weight": torch.ones(16, 3, 1, 1)}, "two halves that do not meet"),
        ({f"{LAYER}.lora_B.weight": torch.ones(16, 2)}, "two halves that do not meet"),
        ({f"{LAYER}.lora_A.weight": torch.ones(2, 16, 3, 3, dtype=torch.int32)}, "torch.int32"),
        ({f"{LAYER}.lora_A.weight": torch.ones(0, 16, 3, 3)}, "(0, 16, 3, 3)"),
        ({f"{LAYER}.lora_A.weight": torch.full((2, 16, 3, 3), float("inf"))}, "NaN or infinite"),
        ({f"{LAYER}.alpha": torch.tensor(float("nan"))}, "NaN or infinite"),
        ({f"{LAYER}.alpha": torch.tensor(3e38), f"{LAYER}.lora_B.weight": torch.full((16, 2, 1, 1), 9.0)}, "strength"),
        ({f"{LAYER}.alpha": torch.ones(2)}, "shape (2,)"),
        ({"unet.x.lora_A.weight": torch.ones(1 << 23, 1), "unet.x.lora_B.weight": torch.ones(1, 1 << 23)}, "a rank of"),
        ({"unet." + 300 * "x": torch.ones(2, 2)}, "under 'unet.xxx"),
    ],
)  # fmt: skip
def test_what_is_no_plain_lora_is_refused_by_name(more, says, tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file(HALVES | more, path)
    with pytest.raises(InputError) as caught:
        load_lora(path)
    assert str(path) in caught.value.message
    assert says in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("adapter", "says"),
    [
        (SETTINGS | {"use_dora": True}, "use_dora"),
        (SETTINGS | {"lora_bias": True}, "lora_bias"),
        (SETTINGS | {"bias": "all"}, "with bias"),
        (SETTINGS | {"modules_to_save": ["conv_in"]}, "modules_to_save"),
        (SETTINGS | {"init_lora_weights": "pissa"}, "init_lora_weights"),
        (SETTINGS | {"r": 3}, "says rank 3 for mid_block.resnets.0.conv1, whose rank is 2"),
        (SETTINGS | {"r": None}, "does not say its rank_pattern and r"),
        ({"r": 2}, "alpha_pattern and lora_alpha"),
        (SETTINGS | {"alpha_pattern": [1]}, "alpha_pattern and lora_alpha"),
        (SETTINGS | {"alpha_pattern": {".*": 1}}, "'.*' in its alpha_pattern"),
        (SETTINGS | {"lora_alpha": float("inf")}, "no finite lora_alpha"),
        ([1], "cannot be read"),
    ],
)
def test_a_strength_that_cannot_be_understood_is_refused(adapter, says, tmp_path):
    path = tmp_path / "lora.safetensors"
    settings = {f"unet.{name}": value for name, value in adapter.items()} if isinstance(adapter, dict) else adapter
    save_file(HALVES, path, {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(InputError) as caught:
        load_lora(path)
    assert says in caught.value.message


def test_a_strength_that_is_said_twice_is_refused(tmp_path):
    path = write(tmp_path / "lora.safetensors", make_update("sdxl"), kohya, ALPHA, SETTINGS)
    with pytest.raises(InputError, match="says its strength twice"):
        load_lora(path)


def test_a_layer_that_the_base_lacks_is_named(tmp_path):
    path = write(tmp_path / "lora.safetensors", make_update("sd15"), kohya)
    with pytest.raises(InputError, match=r"does not fit this base \(it has no layer down_blocks\.0\.attentions\.0\."):
        ours("sdxl", path)


@pytest.mark.parametrize("ending", ["pt", "bin", "ckpt"])
def test_pickles_are_not_opened(ending, tmp_path, rapm):
    path = tmp_path / f"lora.{ending}"
    torch.save(HALVES, path)
    code, _, err = rapm("generate", "a red cube", "--base", "demo", "--lora", str(path))
    assert code == 3
    assert f"{path} is a zip, as torch.save writes, which can hold code" in err
    assert "ask for a safetensors file" in err

"""Writers of LoRA files under every form of keys, independent of the reader under test."""

import json
import re
from functools import cache

import torch
from safetensors.torch import save_file

from rapm_cli.core.network.student import TARGET_MODULES
from tests.conftest import SDXL_LEVELS, tiny_sd15_unet, tiny_unet

EXTRA = ("conv_in", "conv_out", "time_embedding.linear_1")  # other programs train these, rapm does not
NETWORKS = {"sdxl": lambda: tiny_unet(**SDXL_LEVELS), "sd15": tiny_sd15_unet}
RANK, ALPHA = 3, 7.5


@cache
def network(name):
    return NETWORKS[name]()


def make_update(name, rank=RANK, ends=(*TARGET_MODULES, *EXTRA)):
    """Return random A and B for each layer whose name ends so; `rank` is a number, or a function of the name."""
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
    """Name attention by diffusers and the rest by peft, as `convert_state_dict_to_diffusers` does."""
    return diffusers_new(module) if is_attention(module) else peft(module)


def diffusers_old(module):
    """Name to_q and its like as weights of the attention processor, as old versions did."""
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
    """Name by the blocks of SDXL's original code, as kohya's trainer does."""
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
    """Write one LoRA file.

    Args:
        path: File to write.
        update: A and B by layer.
        form: Function from a layer's name to the keys of A and B.
        alphas: Alphas by layer, or one for all; written as tensors.
        header: Peft's settings, written into the header.
        dtype: Dtype of A and B.
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

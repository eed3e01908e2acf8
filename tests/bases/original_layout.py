"""A diffusers folder as one checkpoint in the original layout: the inverse of diffusers' `from_single_file`.

Written from the layout of the published checkpoints, and from none of the code that it is a test of.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from rapm_cli.core.network.schedule import NoiseSchedule

UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_INSIDE = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "attentions.0.group_norm": "attn_1.norm",
    "attentions.0.to_q": "attn_1.q",
    "attentions.0.to_k": "attn_1.k",
    "attentions.0.to_v": "attn_1.v",
    "attentions.0.to_out.0": "attn_1.proj_out",
    "mid_block.": "mid.",
    "downsamplers.0.": "downsample.",
    "upsamplers.0.": "upsample.",
}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_checkpoint(folder: Path, path: Path, **more: Tensor) -> Path:
    """Write the model in a folder as one file, with more tensors beside it under the names they are given."""
    parts = {"model.diffusion_model.": _unet(_read(folder / "unet")), "first_stage_model.": _vae(_read(folder / "vae"))}
    first = _read(folder / "text_encoder") | {"text_model.embeddings.position_ids": torch.arange(77).unsqueeze(0)}
    if (folder / "text_encoder_2").exists():
        second = _open_clip(_read(folder / "text_encoder_2"))
        parts |= {"conditioner.embedders.0.transformer.": first, "conditioner.embedders.1.model.": second}
    else:
        parts |= {"cond_stage_model.transformer.": first}
    state = {prefix + name: value.contiguous() for prefix, part in parts.items() for name, value in part.items()}
    save_file(state | {"alphas_cumprod": NoiseSchedule.scaled_linear().alphas_cumprod} | more, path)
    return path


def _read(folder: Path) -> dict[str, Tensor]:
    (path,) = folder.glob("*.safetensors")
    return load_file(path)


def _unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    attentive = {name.split(".")[1] for name in state if re.match(r"up_blocks\.\d\.attentions", name)}
    return {_unet_name(name, attentive): value for name, value in state.items()}


def _unet_name(name: str, attentive: set[str]) -> str:
    """The original name; `attentive` are the up blocks with attention, after which the upsampler is third."""
    for ours, theirs in UNET_ENDS.items():
        if name.startswith(f"{ours}."):
            return name.replace(ours, theirs)
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        kind, index, rest = match.groups()
        return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{_inside(kind, rest)}"
    way, block, kind, index, rest = re.fullmatch(r"(down|up)_blocks\.(\d)\.(\w+)\.(\d)\.(.+)", name).groups()
    first = 3 * int(block)
    if kind == "downsamplers":
        return f"input_blocks.{first + 3}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":
        return f"output_blocks.{first + 2}.{2 if block in attentive else 1}.{rest}"
    side = f"input_blocks.{first + int(index) + 1}" if way == "down" else f"output_blocks.{first + int(index)}"
    return f"{side}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    part, end = rest.rsplit(".", 1)
    return rest if kind == "attentions" else f"{UNET_RESNET[part]}.{end}"


def _vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    last = max(int(name.split(".")[2]) for name in state if name.startswith("decoder.up_blocks"))
    made = {}
    for name, value in state.items():
        original = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
        original = re.sub(r"up_blocks\.(\d)", lambda match: f"up.{last - int(match[1])}", original)
        original = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid_block.block_{int(match[1]) + 1}", original)
        original = _renamed(original.replace(".resnets.", ".block."), VAE_INSIDE)
        is_projection = ".attn_1." in original and value.dim() == 2
        made[original] = value[:, :, None, None] if is_projection else value  # a 1x1 convolution there
    return made


def _open_clip(state: dict[str, Tensor]) -> dict[str, Tensor]:
    made, joined = {"logit_scale": torch.tensor(4.6)}, r"(.+)\.self_attn\.q_proj\.(weight|bias)"
    for name, value in state.items():
        if match := re.fullmatch(joined, name):
            block, kind = match.groups()
            three = [state[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            made[f"{_renamed(block, OPEN_CLIP)}.attn.in_proj_{kind}"] = torch.cat(three)
        elif name == "text_projection.weight":
            made["text_projection"] = value.T
        elif "k_proj" not in name and "v_proj" not in name:
            made[_renamed(name, OPEN_CLIP)] = value
    return made


def _renamed(name: str, table: dict[str, str]) -> str:
    for ours, theirs in table.items():
        name = name.replace(ours, theirs)
    return name

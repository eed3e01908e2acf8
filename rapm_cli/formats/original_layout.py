"""The original layout of Stable Diffusion checkpoints, which most other programs read: tensor names and shapes.

This needs no torch. Source: the headers of the published checkpoints.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from rapm_cli.formats.header import TensorInfo

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_XL, OPEN_CLIP, CLIP = (
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "cond_stage_model.transformer.",
)
CLIP_PREFIXES, INSIDE_CLIP = (CLIP_XL, CLIP), "text_model."  # which some files leave out
# Empty tensors by which ComfyUI, NoobAI-XL and rapm mark a network that predicts velocities, and a noise schedule that
# goes down to zero signal.
V_TENSOR, ZERO_SNR_TENSOR = "v_pred", "ztsnr"
UNET_PARAMETERS = {"sdxl": 2_567_463_684, "sd15": 859_520_964}  # of the published UNets; a pruned one has fewer
PER_BLOCK = 3  # entries of the original's lists for each diffusers block: two resnets, and one down- or upsampler
UNET_TOP_LEVEL = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
VAE_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.18
CLIP_LAYER = {
    "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}  # fmt: skip
CLIP_TOP_LEVEL = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
BLOCK_LAYER = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class OriginalTensor:
    """A tensor of the original layout.

    Args:
        name: Name in the original layout.
        sources: Names of its tensors in diffusers' layout, which are concatenated along the first dimension.
        shape: Shape in the original layout.
        is_transposed: True where the tensor is the transpose of its one source.
    """

    name: str
    sources: tuple[str, ...]
    shape: Shape
    is_transposed: bool = False


def unet_parameters(tensors: Mapping[str, TensorInfo]) -> int:
    """Return the number of parameters of a checkpoint's UNet, from its header."""
    return sum(one.count for name, one in tensors.items() if name.startswith(UNET))


def attention_blocks(names: Collection[str]) -> frozenset[str]:
    """Return the numbers of the up blocks with attention, from the names of all layers of a UNet in diffusers."""
    found = (re.match(r"up_blocks\.(\d+)\.attentions", name) for name in names)
    return frozenset(match[1] for match in found if match)


def attention_blocks_of_checkpoint(names: Collection[str]) -> frozenset[str]:
    """Return the numbers of the up blocks with attention, from the tensor names of an original checkpoint."""
    found = (re.match(rf"{re.escape(UNET)}output_blocks\.(\d+)\.1\.transformer_blocks\.", name) for name in names)
    return frozenset(str(int(match[1]) // PER_BLOCK) for match in found if match)


def original_unet_layer(name: str, with_attention: frozenset[str]) -> str:
    """Return the original name of a layer of the UNet, such as `input_blocks.4.1.proj_in`, without a prefix.

    Args:
        name: Name in diffusers, such as `down_blocks.1.attentions.0.proj_in`.
        with_attention: Result of `attention_blocks`; the place of a block's upsampler depends on it.

    Raises:
        ValueError: The UNets of Stable Diffusion XL and 1.5 have no such layer.
    """
    if name in UNET_TOP_LEVEL:
        return UNET_TOP_LEVEL[name]
    match = BLOCK_LAYER.fullmatch(name)
    if match is None or (match[2] is None) != (match[1] == "mid"):
        raise ValueError(f"the original layout has no layer {name}")
    side, block, kind, index, inside = match.groups()
    rest = inside if kind == "attentions" else RESNET.get(inside, inside)
    if side == "mid":
        return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{PER_BLOCK * int(block) + PER_BLOCK}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{PER_BLOCK * int(block) + PER_BLOCK - 1}.{2 if block in with_attention else 1}.conv"
    place = PER_BLOCK * int(block) + int(index)
    stem = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
    return f"{stem}.{int(kind == 'attentions')}.{rest}"


def unet_tensors(shapes: Mapping[str, Shape]) -> Iterator[OriginalTensor]:
    """Yield the UNet's tensors in the original layout.

    Args:
        shapes: Shapes of a UNet's tensors in diffusers' layout, by name.

    Raises:
        ValueError: A tensor has no place in the original layout.
    """
    with_attention = attention_blocks(shapes)
    for name, shape in shapes.items():
        layer, _, end = name.rpartition(".")
        yield OriginalTensor(f"{UNET}{original_unet_layer(layer, with_attention)}.{end}", (name,), shape)


def vae_tensors(shapes: Mapping[str, Shape]) -> Iterator[OriginalTensor]:
    """Yield the autoencoder's tensors in the original layout.

    The projections of its attention, (out, in), become 1x1 convolutions (out, in, 1, 1) of the same values.

    Args:
        shapes: Shapes of an autoencoder's tensors in diffusers' layout, by name.

    Raises:
        ValueError: A tensor has no place in the original layout.
    """
    last = max(int(match[1]) for name in shapes if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    for name, shape in shapes.items():
        half, _, inside = name.partition(".")
        if half not in ("encoder", "decoder"):
            yield OriginalTensor(VAE + name, (name,), shape)
            continue
        layer, _, end = inside.rpartition(".")
        is_projection = ".attentions." in inside and len(shape) == 2
        yield OriginalTensor(
            f"{VAE}{half}.{_vae_layer(layer, last)}.{end}", (name,), (*shape, 1, 1) if is_projection else shape
        )


def _vae_layer(name: str, last: int) -> str:
    if name in ("conv_in", "conv_out"):
        return name
    if name == "conv_norm_out":
        return "norm_out"
    match = BLOCK_LAYER.fullmatch(name)
    if match is None:
        raise ValueError(f"the original layout has no layer {name} in its autoencoder")
    side, block, kind, index, inside = match.groups()
    if side == "mid":
        inside = VAE_OLD_ATTENTION.get(inside, inside)
        return (
            f"mid.attn_1.{VAE_ATTENTION[inside]}"
            if kind == "attentions"
            else f"mid.block_{int(index) + 1}.{VAE_RESNET.get(inside, inside)}"
        )
    stem = f"down.{block}" if side == "down" else f"up.{last - int(block)}"  # the original counts from the finest block
    if kind == "resnets":
        return f"{stem}.block.{index}.{VAE_RESNET.get(inside, inside)}"
    return f"{stem}.{kind.removesuffix('rs')}.{inside}"  # downsamplers.0.conv is downsample.conv


def clip_name(name: str) -> str:
    """Return the usual name of a checkpoint's tensor: with `text_model.` in CLIP, which some files leave out."""
    prefix = next((prefix for prefix in CLIP_PREFIXES if name.startswith(prefix)), "")
    return f"{prefix}{INSIDE_CLIP}{name.removeprefix(prefix).removeprefix(INSIDE_CLIP)}" if prefix else name


def clip_tensors(shapes: Mapping[str, Shape], prefix: str) -> Iterator[OriginalTensor]:
    """Yield a CLIP text encoder's tensors in the original layout, whose names all contain `text_model.`.

    Args:
        shapes: Shapes of the encoder's tensors in transformers, by name, with or without `text_model.`.
        prefix: `CLIP_XL` or `CLIP`.
    """
    for name, shape in shapes.items():
        yield OriginalTensor(clip_name(prefix + name), (name,), shape)


def open_clip_tensors(shapes: Mapping[str, Shape]) -> Iterator[OriginalTensor]:
    """Yield the tensors of SDXL's second text encoder as OpenCLIP has them.

    OpenCLIP concatenates queries, keys and values, and transposes the projection.

    Args:
        shapes: Shapes of the encoder's tensors in transformers, by name.

    Raises:
        ValueError: OpenCLIP has no place for a tensor.
        KeyError: OpenCLIP has no place for a tensor of a layer.
    """
    for name, shape in shapes.items():
        if name == "text_projection.weight":
            yield OriginalTensor(f"{OPEN_CLIP}text_projection", (name,), shape[::-1], is_transposed=True)
            continue
        inside = name.removeprefix(INSIDE_CLIP)
        if inside in CLIP_TOP_LEVEL:
            yield OriginalTensor(OPEN_CLIP + CLIP_TOP_LEVEL[inside], (name,), shape)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inside):
            number, layer, end = match.groups()
            stem = f"{OPEN_CLIP}transformer.resblocks.{number}"
            if layer == "self_attn.q_proj":
                three = tuple(name.replace("q_proj", f"{part}_proj") for part in "qkv")
                yield OriginalTensor(f"{stem}.attn.in_proj_{end}", three, (3 * shape[0], *shape[1:]))
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):
                yield OriginalTensor(f"{stem}.{CLIP_LAYER[layer]}.{end}", (name,), shape)
        elif not inside.endswith("position_ids"):
            raise ValueError(f"OpenCLIP has no tensor for {name}")

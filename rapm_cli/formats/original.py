"""The original layout of Stable Diffusion, which most other programs speak: names and forms of its tensors.

Nothing but names and shapes; no torch. Source: the headers of the published checkpoints.
"""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP_XL, OPEN_CLIP, CLIP = (
    "conditioner.embedders.0.transformer.",
    "conditioner.embedders.1.model.",
    "cond_stage_model.transformer.",
)
BLOCK = 3  # layers of the original's lists for each block of diffusers': two resnets, and what changes the size
OUTSIDE = {
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
CLIP_OUTSIDE = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight", "final_layer_norm.bias": "ln_final.bias",
}  # fmt: skip
PLACE = re.compile(r"(down|mid|up)_block(?:s\.(\d+))?\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Original:
    """A tensor of the original layout.

    Args:
        name: There.
        sources: Its tensors in diffusers' layout; several lie one after the other, along the first dimension.
        shape: There.
        is_transposed: Whether its source is the transpose.
    """

    name: str
    sources: tuple[str, ...]
    shape: Shape
    is_transposed: bool = False


def attentive_blocks(names: Collection[str]) -> frozenset[str]:
    """The up blocks with attention, by their numbers, from the names of all layers of a UNet."""
    found = (re.match(r"up_blocks\.(\d+)\.attentions", name) for name in names)
    return frozenset(match[1] for match in found if match)


def attentive_originals(names: Collection[str]) -> frozenset[str]:
    """The same from the names of a checkpoint in the original layout."""
    found = (re.match(rf"{re.escape(UNET)}output_blocks\.(\d+)\.1\.transformer_blocks\.", name) for name in names)
    return frozenset(str(int(match[1]) // BLOCK) for match in found if match)


def unet_layer(name: str, attentive: frozenset[str]) -> str:
    """The original name of a layer of the UNet, such as `input_blocks.4.1.proj_in`, without any prefix.

    Args:
        name: In diffusers, such as `down_blocks.1.attentions.0.proj_in`.
        attentive: From `attentive_blocks`; it decides the place of what enlarges a block.

    Raises:
        ValueError: The UNet of Stable Diffusion XL or 1.5 has no such layer.
    """
    if name in OUTSIDE:
        return OUTSIDE[name]
    match = PLACE.fullmatch(name)
    if match is None or (match[2] is None) != (match[1] == "mid"):
        raise ValueError(f"the original layout has no layer {name}")
    side, block, kind, index, inside = match.groups()
    rest = inside if kind == "attentions" else RESNET.get(inside, inside)
    if side == "mid":
        return f"middle_block.{2 * int(index) + (kind == 'attentions')}.{rest}"
    if kind == "downsamplers":
        return f"input_blocks.{BLOCK * int(block) + BLOCK}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{BLOCK * int(block) + BLOCK - 1}.{2 if block in attentive else 1}.conv"
    place = BLOCK * int(block) + int(index)
    stem = f"input_blocks.{place + 1}" if side == "down" else f"output_blocks.{place}"
    return f"{stem}.{int(kind == 'attentions')}.{rest}"


def unet_tensors(shapes: Mapping[str, Shape]) -> Iterator[Original]:
    """The UNet's tensors.

    Args:
        shapes: Of those of a UNet in diffusers' layout, by name.

    Raises:
        ValueError: One has no place in the original layout.
    """
    attentive = attentive_blocks(shapes)
    for name, shape in shapes.items():
        layer, _, end = name.rpartition(".")
        yield Original(f"{UNET}{unet_layer(layer, attentive)}.{end}", (name,), shape)


def vae_tensors(shapes: Mapping[str, Shape]) -> Iterator[Original]:
    """The autoencoder's tensors; its attention's layers are 1x1 convolutions, of the same numbers."""
    last = max(int(match[1]) for name in shapes if (match := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    for name, shape in shapes.items():
        half, _, inside = name.partition(".")
        if half not in ("encoder", "decoder"):
            yield Original(VAE + name, (name,), shape)
            continue
        layer, _, end = inside.rpartition(".")
        is_projection = ".attentions." in inside and len(shape) == 2
        yield Original(
            f"{VAE}{half}.{_vae_layer(layer, last)}.{end}", (name,), (*shape, 1, 1) if is_projection else shape
        )


def _vae_layer(name: str, last: int) -> str:
    if name in ("conv_in", "conv_out"):
        return name
    if name == "conv_norm_out":
        return "norm_out"
    match = PLACE.fullmatch(name)
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
    stem = f"down.{block}" if side == "down" else f"up.{last - int(block)}"  # there the finest comes first
    if kind == "resnets":
        return f"{stem}.block.{index}.{VAE_RESNET.get(inside, inside)}"
    return f"{stem}.{kind.removesuffix('rs')}.{inside}"  # downsamplers.0.conv is downsample.conv


def clip_tensors(shapes: Mapping[str, Shape], prefix: str) -> Iterator[Original]:
    """A CLIP text encoder's tensors under the names of transformers 4, which left out no `text_model.`."""
    for name, shape in shapes.items():
        yield Original(f"{prefix}text_model.{name.removeprefix('text_model.')}", (name,), shape)


def open_clip_tensors(shapes: Mapping[str, Shape]) -> Iterator[Original]:
    """SDXL's second text encoder in OpenCLIP's form: queries, keys and values are one, the projection is transposed."""
    for name, shape in shapes.items():
        if name == "text_projection.weight":
            yield Original(f"{OPEN_CLIP}text_projection", (name,), shape[::-1], is_transposed=True)
            continue
        inside = name.removeprefix("text_model.")
        if inside in CLIP_OUTSIDE:
            yield Original(OPEN_CLIP + CLIP_OUTSIDE[inside], (name,), shape)
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", inside):
            number, layer, end = match.groups()
            stem = f"{OPEN_CLIP}transformer.resblocks.{number}"
            if layer == "self_attn.q_proj":
                three = tuple(name.replace("q_proj", f"{part}_proj") for part in "qkv")
                yield Original(f"{stem}.attn.in_proj_{end}", three, (3 * shape[0], *shape[1:]))
            elif layer not in ("self_attn.k_proj", "self_attn.v_proj"):
                yield Original(f"{stem}.{CLIP_LAYER[layer]}.{end}", (name,), shape)
        elif not inside.endswith("position_ids"):
            raise ValueError(f"OpenCLIP has no tensor for {name}")

"""The student: LoRA on the backbone's attention, feed-forward, convolution and time layers."""

from typing import Any

import torch
from torch import Tensor

from rapm_cli.core.backbone import Backbone
from rapm_cli.core.randomness import generator_for

# The modules that LCM-LoRA and PCM adapt; 788 of them in SDXL.
TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def attach_lora(backbone: Backbone, rank: int, alpha: float, seed: int = 0) -> None:
    """Put a fresh LoRA on the backbone, in float32; its first output equals the teacher's, because B is zero.

    Args:
        backbone: Network without a LoRA.
        rank: Rank of every update.
        alpha: The update is (alpha / rank) B A.
        seed: Seed of A.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGET_MODULES), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "lora").initial_seed())
        backbone.unet.add_adapter(config)
    backbone.lora_layers = [module for module in backbone.unet.modules() if isinstance(module, LoraLayer)]
    for parameter in lora_parameters(backbone):
        parameter.data = parameter.data.float()
    for layer in backbone.lora_layers:
        layer._disable_adapters = True
    backbone.is_student = False


def lora_parameters(backbone: Backbone) -> list[Tensor]:
    """The student's trainable parameters, in a fixed order."""
    return list(_named(backbone).values())


def lora_state(backbone: Backbone) -> dict[str, Tensor]:
    """The student's weights by peft key, such as `mid_block.resnets.0.conv1.lora_A.weight`, detached, on the CPU."""
    return {
        name.replace(".default.", "."): value.detach().cpu().contiguous() for name, value in _named(backbone).items()
    }


def load_lora_state(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """Copy weights by peft key into an attached LoRA of the same shape.

    Raises:
        ValueError: A key or a shape differs.
    """
    copy_tensors(state, {name.replace(".default.", "."): value for name, value in _named(backbone).items()})


def lora_names(backbone: Backbone) -> list[str]:
    """The peft keys, in the order of the parameters."""
    return [name.replace(".default.", ".") for name in _named(backbone)]


@torch.no_grad()
def copy_tensors(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    """Copy values in place by name.

    Raises:
        ValueError: A name or a shape differs; nothing was copied.
    """
    if target.keys() != source.keys():
        raise ValueError(f"keys differ: {sorted(target.keys() ^ source.keys())[:3]}")
    for name, value in target.items():
        if value.shape != source[name].shape:
            raise ValueError(f"the shape of {name} differs: {tuple(value.shape)} and {tuple(source[name].shape)}")
    for name, value in target.items():
        value.copy_(source[name])


def _named(backbone: Backbone) -> dict[str, Any]:
    return {name: value for name, value in backbone.unet.named_parameters() if ".lora_" in name}

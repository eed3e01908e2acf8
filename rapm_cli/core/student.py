"""The student: LoRA on the backbone's attention, feed-forward, convolution and time layers."""

from typing import Any

import torch
from torch import Tensor, nn

from rapm_cli.core.adapters import ADAPTER, install
from rapm_cli.core.backbone import Backbone
from rapm_cli.core.randomness import generator_for

# The modules that LCM-LoRA and PCM adapt; 788 of them in SDXL.
TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def attach_lora(backbone: Backbone, rank: int, alpha: float, seed: int = 0, modules: list[str] | None = None) -> None:
    """Put a fresh LoRA on the backbone, in float32; its first output equals the teacher's, because B is zero.

    In a 16-bit network it has to be brought to the network's dtype before it is used: `LoraWeights` or
    `load_lora_state` does.

    Args:
        backbone: Network without a LoRA.
        rank: Rank of every update.
        alpha: The update is (alpha / rank) B A.
        seed: Seed of A.
        modules: Whole names of the layers to adapt; None for all of `TARGET_MODULES`.

    Raises:
        ValueError: The backbone lacks one of the modules.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    _check_modules(backbone, modules or [])
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules or list(TARGET_MODULES), lora_dropout=0.0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(generator_for(seed, "lora").initial_seed())
        backbone.unet.add_adapter(config)
    for parameter in _named(backbone).values():
        parameter.data = parameter.data.float()
    for module in backbone.unet.modules():
        if isinstance(module, LoraLayer):
            install(module, backbone.switch)


def _check_modules(backbone: Backbone, modules: list[str]) -> None:
    layers = dict(backbone.unet.named_modules())
    for module in modules:
        if not isinstance(layers.get(module), nn.Linear | nn.Conv2d):
            raise ValueError(f"it has no layer {module}")


class LoraWeights:
    """The weights of an attached LoRA: float32 masters, and what the network computes with.

    In a float32 network the two are one. In a 16-bit network it computes with copies in its own dtype, made anew after
    each update, so that no pass casts 788 small tensors; gradients are taken of the copies and go to the masters.

    Args:
        backbone: With a LoRA in float32; from here on its layers hold the copies.
    """

    def __init__(self, backbone: Backbone) -> None:
        working = _named(backbone)
        self.names = list(working)
        self.masters = [value.detach().clone().requires_grad_() for value in working.values()]
        self.working = list(working.values())
        for copy, master in zip(self.working, self.masters, strict=True):
            copy.data = master.detach().to(backbone.dtype)  # the master itself where that is float32

    def take_gradients(self, loss: Tensor, scale: float = 1.0) -> None:
        """Set the masters' gradients to the loss's, through a backward pass of `scale` times the loss."""
        gradients = torch.autograd.grad(loss * scale if scale != 1 else loss, self.working)
        for master, gradient in zip(self.masters, gradients, strict=True):
            master.grad = gradient.float().div_(scale) if scale != 1 else gradient.float()

    @torch.no_grad()
    def publish(self) -> None:
        """Let the network compute with the masters' present values."""
        if self.working[0].data_ptr() != self.masters[0].data_ptr():
            torch._foreach_copy_(self.working, self.masters)

    def state(self) -> dict[str, Tensor]:
        """The masters by peft key, such as `mid_block.resnets.0.conv1.lora_A.weight`, detached, on the CPU."""
        pairs = zip(self.names, self.masters, strict=True)
        return {name: master.detach().cpu().contiguous() for name, master in pairs}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Go back to what `state` returned.

        Raises:
            ValueError: A key or a shape differs.
        """
        copy_tensors(state, dict(zip(self.names, self.masters, strict=True)))
        self.publish()


def load_lora_state(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """Copy weights by peft key into an attached LoRA of the same shape, in the network's dtype.

    Raises:
        ValueError: A key or a shape differs.
    """
    copy_tensors(state, _named(backbone))
    for value in _named(backbone).values():
        value.data = value.data.to(backbone.dtype)


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
    """Weights by peft key."""
    named = backbone.unet.named_parameters()
    return {name.replace(f".{ADAPTER}.", "."): value for name, value in named if ".lora_" in name}

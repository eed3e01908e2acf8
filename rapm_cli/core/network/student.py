"""The student: LoRA on the backbone's attention, feed-forward, convolution and time layers."""

import warnings

import torch
from torch import Tensor, nn

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.flat_weights import MasterWeights, copy_tensors
from rapm_cli.core.network.lora_layers import ADAPTERS, STUDENT, install

# The modules that LCM-LoRA and PCM adapt; 788 of them in SDXL.
TARGET_MODULES = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip


def attach_lora(
    backbone: Backbone,
    rank: int,
    alpha: float,
    seed: int = 0,
    modules: list[str] | None = None,
    role: str = STUDENT,
    init: str = "kaiming",
) -> None:
    """Attach a fresh LoRA in float32; B is zero, so that the first output equals the teacher's.

    In a 16-bit network, call `lora_weights` or `load_lora_state` before the LoRA is used. They bring it to the
    network's dtype.

    Args:
        backbone: Network without a LoRA of this role.
        rank: Rank of every update.
        alpha: The update is (alpha / rank) B A.
        seed: Seed of A.
        modules: Full names of the layers to adapt; None for all of `TARGET_MODULES`.
        role: Role in which the LoRA is on.
        init: Distribution of A: "kaiming" (uniform within 1 / sqrt(inputs)) or "gaussian" (deviation 1 / rank).

    Raises:
        ValueError: The backbone lacks one of the modules.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraLayer

    _check_modules(backbone, modules or [])
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=modules or list(TARGET_MODULES),
        lora_dropout=0.0,
        init_lora_weights="gaussian" if init == "gaussian" else True,
    )
    device = backbone.device if backbone.device.type == "meta" else torch.device("cpu")  # where A is drawn
    with torch.random.fork_rng(devices=[]), device:
        purpose = ("lora",) if role == STUDENT else ("lora", role)
        torch.manual_seed(generator_for(seed, *purpose).initial_seed())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Already found a `peft_config`")  # the second LoRA is intended
            backbone.unet.add_adapter(config, ADAPTERS[role])
    for parameter in lora_parameters(backbone, role).values():
        parameter.data = parameter.data.float()
    for name, parameter in backbone.unet.named_parameters():
        parameter.requires_grad_(".lora_" in name)  # peft freezes all adapters but the last
    for module in backbone.unet.modules():
        if isinstance(module, LoraLayer):
            install(module, backbone.switch)
    backbone.reset_graphs()


def _check_modules(backbone: Backbone, modules: list[str]) -> None:
    layers = dict(backbone.unet.named_modules())
    for module in modules:
        if not isinstance(layers.get(module), nn.Linear | nn.Conv2d):
            raise ValueError(f"it has no layer {module}")


def lora_weights(backbone: Backbone) -> MasterWeights:
    """Return the master weights of the student's LoRA; from here on the network computes with copies in its dtype."""
    return MasterWeights(lora_parameters(backbone), backbone.dtype)


def load_lora_state(backbone: Backbone, state: dict[str, Tensor]) -> None:
    """Copy weights by peft key into an attached LoRA of the same shape, and cast it to the network's dtype.

    Raises:
        ValueError: A key or a shape differs.
    """
    copy_tensors(state, lora_parameters(backbone))
    for value in lora_parameters(backbone).values():
        value.data = value.data.to(backbone.dtype)


def lora_parameters(backbone: Backbone, role: str = STUDENT) -> dict[str, nn.Parameter]:
    """Return a LoRA's parameters by peft key, such as `mid_block.resnets.0.conv1.lora_A.weight`."""
    end = f".{ADAPTERS[role]}."
    named = backbone.unet.named_parameters()
    return {name.replace(end, "."): value for name, value in named if ".lora_" in name and end in name}

"""Small LoRAs of a user's own for the small demo base, written under other programs' keys."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from rapm_cli.core.network.student import TARGET_MODULES


def write_style(path: Path, folder: Path, *, seed: int = 0, rank: int = 2, alpha: float = 3.0) -> Path:
    """Write a random LoRA on a base's attention and convolutions, in kohya's form, with an alpha that is not its rank.

    Args:
        path: File to write.
        folder: Folder of the base.
        seed: Seed of its values.
        rank: Rank of every update.
        alpha: Alpha of every update.
    """
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(folder / "unet"))
    generator, state = torch.Generator().manual_seed(seed), {}
    for name, layer in network.named_modules():
        if name.endswith((*TARGET_MODULES, "conv_in")) and hasattr(layer, "weight"):
            shape, key = layer.weight.shape, "lora_unet_" + name.replace(".", "_")
            ends = [1] * (len(shape) - 2)
            state[f"{key}.lora_down.weight"] = 0.1 * torch.randn(rank, *shape[1:], generator=generator)
            state[f"{key}.lora_up.weight"] = 0.1 * torch.randn(shape[0], rank, *ends, generator=generator)
            state[f"{key}.alpha"] = torch.tensor(alpha)
    save_file(state, path)
    return path

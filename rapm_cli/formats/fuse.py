"""The LoRA merged into a diffusers folder's UNet, computed in float32 and read back."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.errors import InputError
from rapm_cli.core.sample import Sampler
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.tensors import write_tensors

WEIGHTS = "diffusion_pytorch_model.safetensors"


@dataclass(frozen=True)
class FuseReport:
    """What rounding to the base's dtype did to the update.

    Args:
        modules: Layers that were merged.
        mean_lost: Mean over modules of |rounded update - update| / |update|, Frobenius norms.
        worst_lost: The largest.
    """

    modules: int
    mean_lost: float
    worst_lost: float


def lora_update(down: Tensor, up: Tensor, scale: float) -> Tensor:
    """Scale * B A in float32, shaped as the layer's weight.

    Args:
        down: A, (r, in) or for a convolution (r, in, k, k).
        up: B, (out, r) or (out, r, 1, 1).
        scale: alpha / rank.
    """
    product = up.float().flatten(1) @ down.float().flatten(1)
    return scale * product.reshape(up.shape[0], *down.shape[1:])


def fuse_folder(folder: Path, lora: LoraFile, dtype: torch.dtype | None = None) -> FuseReport:
    """Merge a LoRA into the UNet of a diffusers folder, in place, and set the sampler that it needs.

    Args:
        folder: A copy of the base; its UNet's weights, in one file or several, are replaced by one file.
        lora: What to merge.
        dtype: Of the written weights; None keeps the base's.

    Raises:
        InputError: The LoRA does not fit the folder's UNet.
        VerificationError: The written weights, read back, are not the merged ones.
    """
    from safetensors.torch import load_file

    files = sorted((folder / "unet").glob("*.safetensors*"))
    read = [load_file(path) for path in files if path.suffix == ".safetensors"]
    weights = {name: value.to(dtype or value.dtype) for part in read for name, value in part.items()}
    losses = []
    for name in sorted(name for name in lora.state if name.endswith(".lora_A.weight")):
        module = name.removesuffix(".lora_A.weight")
        key = f"{module}.weight"
        if key not in weights:
            raise InputError(
                f"the LoRA changes {module}, which this base does not have", "give the --base it was made for"
            )
        update = lora_update(lora.state[name], lora.state[f"{module}.lora_B.weight"], lora.alpha / lora.rank)
        before = weights[key].float()
        if update.shape != before.shape:
            raise InputError(
                f"the LoRA's {module} has another shape than the base's", "give the --base it was made for"
            )
        weights[key] = (before + update).to(weights[key].dtype)
        size = update.norm()
        if size > 0:
            losses.append(float((weights[key].float() - before - update).norm() / size))
    for path in files:
        path.unlink()
    write_tensors(folder / "unet" / WEIGHTS, weights, {"format": "pt"})
    _set_sampler(folder, lora.sampler)
    return FuseReport(len(losses), sum(losses) / max(1, len(losses)), max(losses, default=0.0))


def _set_sampler(folder: Path, sampler: Sampler) -> None:
    """Make the student's scheduler the folder's, which for most is DDIM with trailing spacing."""
    index_path, path = folder / "model_index.json", folder / "scheduler" / "scheduler_config.json"
    index, scheduler = json.loads(index_path.read_text()), json.loads(path.read_text())
    name = f"{sampler.scheduler}Scheduler"
    index["scheduler"] = ["diffusers", name]
    scheduler |= {"_class_name": name, **sampler.settings}
    index_path.write_text(json.dumps(index, indent=2) + "\n")
    path.write_text(json.dumps(scheduler, indent=2) + "\n")

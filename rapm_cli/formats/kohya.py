"""Write a LoRA in the format of kohya's trainer (sd-scripts), which ComfyUI, A1111, sd-scripts and diffusers read.

Layers are named as in kohya's trainer: for SDXL by the original code, for Stable Diffusion 1.5 by diffusers. The scale
is folded into the up weights, and alpha equals the rank, so that every reader applies the same scale of 1.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.modelspec import SGM, model_spec, model_title
from rapm_cli.formats.original_layout import attention_blocks, original_unet_layer
from rapm_cli.formats.recipe import shown_size
from rapm_cli.formats.safetensors_writer import DIGEST_PLACEHOLDER, write_tensors
from rapm_cli.formats.sampling_advice import usage_hint

KOHYA_PREFIX = "lora_unet_"
BASE_VERSIONS = {True: "sdxl_base_v1-0", False: "sd_v1"}  # by is_xl; A1111 hides a LoRA of another version


@dataclass(frozen=True)
class LoraTarget:
    """The UNet that a LoRA is written for.

    Args:
        is_xl: True for an SDXL; False for a Stable Diffusion 1.5.
        layers: Names of the UNet's layers in diffusers.
        size: Width and height of the base's images, in pixels.
        alias: Name that A1111 shows for the LoRA; empty for the file's stem.
        has_usual_shapes: True for the shapes of the published SDXL or SD 1.5, by which other programs know a base.
    """

    is_xl: bool
    layers: Collection[str]
    size: tuple[int, int]
    alias: str = ""
    has_usual_shapes: bool = True

    def kohya_name(self, module: str) -> str:
        """Return kohya's name for a layer of diffusers.

        Raises:
            InputError: The base has no such layer.
        """
        if module not in self.layers:
            raise InputError(f"the LoRA changes {module}, which this base does not have", "give its own --base")
        name = original_unet_layer(module, attention_blocks(self.layers)) if self.is_xl else module
        return KOHYA_PREFIX + name.replace(".", "_")


def save_kohya(path: Path, lora: LoraFile, target: LoraTarget, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA in kohya's format, and verify the file.

    Args:
        path: File to write.
        lora: LoRA to write.
        target: UNet that the LoRA is for.
        dtype: Dtype of the written weights; None keeps the LoRA's own.

    Raises:
        InputError: The LoRA changes a layer that the base does not have.
        DiskError: The file cannot be written.
        VerificationError: The bytes read back differ from those written; no file is left.
    """
    state: dict[str, Tensor] = {}
    folded = lora.folded(dtype).state
    for module in lora.modules:
        name = target.kohya_name(module)
        state[f"{name}.lora_down.weight"] = folded[f"{module}.lora_A.weight"]
        state[f"{name}.lora_up.weight"] = folded[f"{module}.lora_B.weight"]
        state[f"{name}.alpha"] = torch.tensor(float(lora.rank))
    write_tensors(path, state, _metadata(path, lora, target))


def _metadata(path: Path, lora: LoraFile, target: LoraTarget) -> dict[str, str]:
    training, about = lora.recipe.get("training", {}), [model_title(lora.recipe), usage_hint(lora.recipe)]
    kohya = {
        "v2": "False",
        "base_model_version": BASE_VERSIONS[target.is_xl],
        "network_module": "networks.lora",
        "network_dim": str(lora.rank),
        "network_alpha": str(float(lora.rank)),
        "network_args": json.dumps({"conv_dim": str(lora.rank), "conv_alpha": str(float(lora.rank))}),
        "output_name": target.alias or path.stem,
        "sd_model_name": str(lora.recipe.get("base", "")),
        "resolution": str(shown_size(lora.recipe, target.size)),
        "training_comment": ": ".join(filter(None, about)),
    }
    settings = {"seed": "seed", "steps": "iterations", "learning_rate": "learning_rate"}  # ours by kohya's name
    kohya |= {name: str(training[ours]) for name, ours in settings.items() if ours in training}
    spec = model_spec(lora.recipe, is_xl=target.is_xl, is_lora=True, implementation=SGM, size=target.size)
    return spec | {f"ss_{name}": text for name, text in kohya.items()} | {"sshs_model_hash": DIGEST_PLACEHOLDER}

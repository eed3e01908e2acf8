"""A LoRA in the form of kohya's trainer, which ComfyUI, A1111 and sd-scripts read, and diffusers too.

Its layers have the names of SDXL's original code, for a Stable Diffusion 1.5 those of diffusers, as there. The strength
is in the up weights, and alpha says the rank: every reader then agrees, whatever it makes of alpha.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.lora import LoraFile
from rapm_cli.formats.modelspec import SGM, model_spec, title, usage_hint
from rapm_cli.formats.original import attentive_blocks, unet_layer
from rapm_cli.formats.stream import DIGEST
from rapm_cli.formats.tensors import write_tensors

PREFIX = "lora_unet_"
VERSIONS = {True: "sdxl_base_v1-0", False: "sd_v1"}  # of the base, by whether it is an SDXL; A1111 hides others


@dataclass(frozen=True)
class Target:
    """The base that a LoRA is written for.

    Args:
        is_xl: Whether it is an SDXL; else it is a Stable Diffusion 1.5.
        layers: Names of its UNet's layers in diffusers.
        side_px: Width and height of its pictures.
        alias: What A1111 calls the LoRA; empty for the file's own name.
    """

    is_xl: bool
    layers: Collection[str]
    side_px: int
    alias: str = ""

    def name_of(self, module: str) -> str:
        """What kohya calls a layer.

        Raises:
            InputError: The base has no such layer.
        """
        if module not in self.layers:
            raise InputError(f"the LoRA changes {module}, which this base does not have", "give its own --base")
        return PREFIX + (unet_layer(module, attentive_blocks(self.layers)) if self.is_xl else module).replace(".", "_")


def save_kohya(path: Path, lora: LoraFile, target: Target, dtype: torch.dtype | None = None) -> None:
    """Write the file, and read it back.

    Args:
        path: Of the file.
        lora: What to write.
        target: Its base.
        dtype: Of the weights; None keeps theirs.

    Raises:
        InputError: The LoRA is of another base.
        DiskError: It cannot be written.
        VerificationError: What was read back differs from what was written; nothing is left.
    """
    state: dict[str, Tensor] = {}
    for module in lora.modules:
        name, (down, up) = target.name_of(module), (lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
        state[f"{name}.lora_down.weight"] = down.to(dtype or down.dtype)
        state[f"{name}.lora_up.weight"] = (up.float() * (lora.alpha / lora.rank)).to(dtype or up.dtype)
        state[f"{name}.alpha"] = torch.tensor(float(lora.rank))
    write_tensors(path, state, _metadata(path, lora, target))


def _metadata(path: Path, lora: LoraFile, target: Target) -> dict[str, str]:
    training, about = lora.recipe.get("training", {}), [title(lora.recipe), usage_hint(lora.recipe)]
    kohya = {
        "v2": "False",
        "base_model_version": VERSIONS[target.is_xl],
        "network_module": "networks.lora",
        "network_dim": str(lora.rank),
        "network_alpha": str(float(lora.rank)),
        "network_args": json.dumps({"conv_dim": str(lora.rank), "conv_alpha": str(float(lora.rank))}),
        "output_name": target.alias or path.stem,
        "sd_model_name": str(lora.recipe.get("base", "")),
        "resolution": f"({target.side_px}, {target.side_px})",
        "training_comment": ": ".join(filter(None, about)),
    }
    told = {"seed": "seed", "steps": "iterations", "learning_rate": "learning_rate"}
    kohya |= {name: str(training[ours]) for name, ours in told.items() if ours in training}
    spec = model_spec(lora.recipe, is_xl=target.is_xl, is_lora=True, implementation=SGM, side_px=target.side_px)
    return spec | {f"ss_{name}": text for name, text in kohya.items()} | {"sshs_model_hash": DIGEST}

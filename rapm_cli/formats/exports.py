"""The formats that a LoRA is exported in, and the check that an exported file applies the same update."""

from collections.abc import Callable
from pathlib import Path

import torch

from rapm_cli.core.common.errors import VerificationError
from rapm_cli.core.common.registry import Registry
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.header import read_header
from rapm_cli.formats.kohya import LoraTarget, save_kohya
from rapm_cli.formats.lora import LoraFile, load_lora, save_lora
from rapm_cli.formats.programs import Verdict, verdicts

Writer = Callable[[Path, LoraFile, LoraTarget, torch.dtype | None], None]
EXPORTS: Registry[Writer] = Registry("format")
# Limit of |file's update - LoRA's update| / |LoRA's update| of a layer, Frobenius norms. A and B are each rounded once.
TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-3, "BF16": 1.6e-2}
NEGLIGIBLE_NORM = 1e-12  # smaller differences always pass


@EXPORTS.add("diffusers")
def save_diffusers(path: Path, lora: LoraFile, target: LoraTarget, dtype: torch.dtype | None = None) -> None:
    """Write a LoRA under peft's keys, with rank and alpha in the header; arguments and errors as of `save_kohya`."""
    for module in lora.modules:
        target.kohya_name(module)
    save_lora(path, lora, dtype)


EXPORTS.add("kohya")(save_kohya)


def verify_lora(path: Path, lora: LoraFile, target: LoraTarget) -> list[Verdict]:
    """Read an exported LoRA back through diffusers' table of names, and compare the update of each layer.

    Args:
        path: Exported file.
        lora: LoRA that was exported.
        target: UNet that the LoRA is for.

    Returns:
        One verdict for each program.

    Raises:
        VerificationError: The file lacks a layer, or an update differs by more than rounding.
    """
    found, header = load_lora(path), read_header(path)
    if found.modules != lora.modules:
        odd = sorted(set(found.modules) ^ set(lora.modules))[0]
        raise VerificationError(f"{path} changes other layers than the LoRA, first {odd}", "this is a bug of rapm")
    limit = max(TOLERANCE[info.dtype] for info in header.tensors.values())
    for module in lora.modules:
        wanted, made = _layer_update(lora, module), _layer_update(found, module)
        if float((made - wanted).norm()) > max(limit * float(wanted.norm()), NEGLIGIBLE_NORM):
            raise VerificationError(
                f"{path} applies another update to {module} than the LoRA does",
                "give --dtype fp32, which rounds nothing",
            )
    return verdicts(header.tensors, header.metadata, is_xl=target.is_xl, has_usual_shapes=target.has_usual_shapes)


def _layer_update(lora: LoraFile, module: str) -> torch.Tensor:
    return lora_update(*lora.factors(module), lora.alpha / lora.rank)

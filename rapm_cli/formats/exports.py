"""The forms that a LoRA is written in for other programs, and the proof that a file says what the LoRA does."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from rapm_cli.core.common.errors import VerificationError
from rapm_cli.core.common.registry import Registry
from rapm_cli.formats.fuse import lora_update
from rapm_cli.formats.header import read_header
from rapm_cli.formats.kohya import Target, save_kohya
from rapm_cli.formats.lora import LoraFile, load_lora, save_lora
from rapm_cli.formats.programs import Verdict, verdicts

Writer = Callable[[Path, LoraFile, Target, torch.dtype | None], None]
EXPORTS: Registry[Writer] = Registry("format")
# |update of the file - update| / |update|, Frobenius norms, of a layer: both halves are rounded once.
TOLERANCE = {"F64": 1e-6, "F32": 1e-6, "F16": 2e-3, "BF16": 1.6e-2}
SMALLEST = 1e-12  # an update that nobody misses


@EXPORTS.add("diffusers")
def save_diffusers(path: Path, lora: LoraFile, target: Target, dtype: torch.dtype | None = None) -> None:
    """Write peft's keys, rank and alpha in the header; arguments and errors as of `save_kohya`."""
    for module in lora.modules:
        target.name_of(module)
    save_lora(path, replace(lora, state={name: value.to(dtype or value.dtype) for name, value in lora.state.items()}))


EXPORTS.add("kohya")(save_kohya)


def verify_lora(path: Path, lora: LoraFile, target: Target) -> list[Verdict]:
    """Read a LoRA back by diffusers' own table of names, and compare what it does to each layer.

    Returns:
        What each program makes of the file.

    Raises:
        VerificationError: A layer is missing, or what is added to it differs by more than rounding.
    """
    found, header = load_lora(path), read_header(path)
    if found.modules != lora.modules:
        odd = sorted(set(found.modules) ^ set(lora.modules))[0]
        raise VerificationError(f"{path} does not change the same layers, first {odd}", "this is a bug of rapm")
    limit = max(TOLERANCE[info.dtype] for info in header.tensors.values())
    for module in lora.modules:
        wanted, made = _update(lora, module), _update(found, module)
        if float((made - wanted).norm()) > max(limit * float(wanted.norm()), SMALLEST):
            raise VerificationError(
                f"{path} changes {module} otherwise than the LoRA does", "give --dtype fp32, which rounds nothing"
            )
    return verdicts(header.tensors, header.metadata, is_xl=target.is_xl)


def _update(lora: LoraFile, module: str) -> torch.Tensor:
    down, up = (lora.state[f"{module}.lora_{half}.weight"] for half in "AB")
    return lora_update(down, up, lora.alpha / lora.rank)

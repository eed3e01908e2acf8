"""Bases with LoRAs of the user's merged into their UNet: the teacher is the base as the user samples it."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from rapm_cli.bases.base import Base
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.progress import Reporter
from rapm_cli.formats.fuse import LoraFuser, check_lora_fits, open_tensors
from rapm_cli.formats.lora import load_lora
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.formats.lora_stack import load_stacked
from rapm_cli.formats.safetensors_writer import DTYPE_NAMES


def with_loras(base: Base, loras: Sequence[LoraRef], reporter: Reporter) -> Base:
    """Return a base whose UNet has LoRAs merged in, beside those that it has; its weights have another identity.

    The order of the LoRAs does not matter. No weights of the base are fetched.

    Args:
        base: Base with or without LoRAs.
        loras: LoRAs to merge; none for the base as it is.
        reporter: Shows downloads of the base's configurations.

    Raises:
        InputError: A file is not a plain LoRA of a UNet, or was made for another base.
    """
    if not loras:
        return base
    network = base.architecture(reporter).network(torch.device("meta"), torch.float32)
    for lora in loras:
        check_lora_fits(network, load_lora(lora.path), lora.path)
    bare, merged = base.bare or base, tuple(sorted((*base.loras, *loras), key=lambda lora: (lora.sha256, lora.weight)))

    def identity(reporter: Reporter) -> str:
        return merged_identity(bare.identity(reporter), merged)

    def locate(reporter: Reporter) -> Weights:
        weights = bare.locate(reporter)
        return replace(weights, identity=merged_identity(weights.identity, merged), loras=merged)

    return replace(
        bare,
        bare=bare,
        loras=merged,
        identity=identity,
        locate=locate,
        student=None,
        former_students=frozenset(),
    )


def merged_identity(identity: str, loras: Sequence[LoraRef]) -> str:
    """Return the identity of weights with LoRAs merged in, wherever the files are."""
    about = repr((identity, [(lora.sha256, float(lora.weight)) for lora in loras]))
    return hashlib.sha256(about.encode()).hexdigest()[:16]


@torch.no_grad()
def merge_loras(unet: nn.Module, weights: Weights, dtype: torch.dtype) -> None:
    """Merge a base's LoRAs into its loaded UNet: each sum is computed in float32 from stored weights, and rounded once.

    Args:
        unet: UNet of the base, on the CPU; only the layers that the LoRAs change are read again.
        weights: Files of the base, with its LoRAs.
        dtype: Dtype of the UNet.

    Raises:
        InputError: A LoRA does not fit, or makes a weight overflow.
    """
    fuser = LoraFuser(load_stacked(weights.loras), DTYPE_NAMES[dtype])
    stored = open_tensors([weights.checkpoint] if weights.checkpoint else weights.files_of("unet"))
    for name, value in fuser.fused_layers(stored, is_checkpoint=weights.checkpoint is not None):
        unet.get_parameter(f"{name}.weight").copy_(value)

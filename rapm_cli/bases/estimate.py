"""What phase 2 will need of a device, before any weight is loaded."""

import dataclasses

import torch

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.plans import Plan
from rapm_cli.core.config import TrainConfig
from rapm_cli.core.int8 import quantise
from rapm_cli.core.rehearsal import META, Rehearsed, rehearse_training


def rehearse_plan(
    architecture: Architecture, config: TrainConfig, dtype: torch.dtype, plan: Plan, *, num_slots: int
) -> Rehearsed:
    """One iteration of phase 2 under a plan, on the meta device: seconds of the CPU, and no memory to speak of."""
    backbone = architecture.backbone(META, dtype)
    if plan.is_quantised:
        quantise(backbone.unet)
    if plan.recomputed:
        backbone.enable_checkpointing(plan.recomputed)
    plain = dataclasses.replace(config, checkpointing=False)  # the plan says it
    row = architecture.conditioning(META, dtype)
    return rehearse_training(backbone, plain, row, architecture.latent_shape, num_slots)

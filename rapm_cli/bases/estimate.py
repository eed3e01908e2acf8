"""Predict the memory and operations of both phases before any weight is loaded."""

import dataclasses

import torch

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.plans import Plan
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.method.memory_estimate import META, Rehearsed, rehearse_teacher, rehearse_training
from rapm_cli.core.network.int8 import quantise


def rehearse_plan(architecture: Architecture, teacher: TeacherConfig, config: TrainConfig, plan: Plan) -> Rehearsed:
    """Predict one training iteration under a memory plan, on the meta device; takes seconds and almost no memory."""
    dtype = DTYPES[teacher.precision]
    backbone = architecture.backbone(META, dtype)
    if plan.is_quantised:
        quantise(backbone.unet)
    if plan.recomputed:
        backbone.enable_checkpointing(plan.recomputed)
    plain = dataclasses.replace(config, gradient_checkpointing=False)  # the plan decides
    row = architecture.conditioning(META, dtype)
    return rehearse_training(backbone, plain, row, architecture.latent_shape, teacher.num_slots, teacher.guidance_scale)


def rehearse_guidance(
    architecture: Architecture, dtype: torch.dtype, *, batch_size: int, guidance_scale: float
) -> Rehearsed:
    """Predict one guided step of the teacher, on the meta device."""
    backbone, row = architecture.backbone(META, dtype), architecture.conditioning(META, dtype)
    return rehearse_teacher(backbone, row, architecture.latent_shape, batch_size, guidance_scale)

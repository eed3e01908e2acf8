"""Predict the memory and the work of both phases, by running them on the meta device before any weight is loaded."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.plans import Plan
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import Trajectories, guided_prediction
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.network.int8 import quantise
from rapm_cli.core.training.meta_profiler import Meter, flash_attention
from rapm_cli.core.training.step_metrics import UpdateFlags

META = torch.device("meta")


@dataclass(frozen=True)
class CostEstimate:
    """Predicted memory and work.

    Args:
        peak_bytes: Peak memory in bytes, weights included.
        flops: Number of floating-point operations.
        trained: Number of trained parameters.
    """

    peak_bytes: int
    flops: int
    trained: int = 0


class _MetaTrainer(Trainer):
    """A trainer on the meta device, where there are no numbers to update."""

    def _update(self, losses: Mapping[str, Tensor], are_targets_finite: Tensor) -> UpdateFlags:
        for optimizer in self.optimizers.values():
            optimizer.zero_grad()
        return UpdateFlags(are_targets_finite, are_targets_finite, are_targets_finite, None)


def estimate_plan(architecture: Architecture, teacher: TeacherConfig, config: TrainConfig, plan: Plan) -> CostEstimate:
    """Predict one training iteration under a memory plan; takes seconds and almost no memory."""
    dtype = DTYPES[teacher.precision]
    backbone = architecture.backbone(META, dtype)
    if plan.is_quantised:
        quantise(backbone.unet)
    if plan.recomputed:
        backbone.enable_checkpointing(plan.recomputed)
    plain = dataclasses.replace(config, gradient_checkpointing=False)  # the plan decides
    return estimate_training(
        backbone, plain, teacher, architecture.conditioning(META, dtype), architecture.latent_shape
    )


def estimate_training(
    backbone: Backbone,
    config: TrainConfig,
    teacher: TeacherConfig,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
) -> CostEstimate:
    """Predict one iteration of phase 2.

    Args:
        backbone: Network on the meta device, without a LoRA; one is attached.
        config: Settings of the training; its batch size counts.
        teacher: Settings of the trajectories; guidance of 1 halves the teacher's work.
        cond: One row of conditioning, on the meta device.
        latent_shape: (C, h, w) of a latent.
    """
    trainer, num_slots = _MetaTrainer.of_teacher(backbone, config, teacher, cond), teacher.num_slots
    size = config.batch_size
    position = torch.empty(size, num_slots + 1, *latent_shape, device=META)
    batch = Trajectories(position, position[:, :num_slots].clone(), cond.expand(size))
    trained = [optimizer.weights.flat for optimizer in trainer.optimizers.values()]
    held = [*backbone.unet.parameters(), *backbone.unet.buffers(), *trained, *batch.tensors().values()]
    held += [trainer.average.flat] if trainer.average else []
    moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # AdamW's
    meter, slots, period = Meter(), trainer.method.slots, trainer.method.period
    meter.hold([*held, *moments])
    with flash_attention(meter), meter:
        for turn in range(period):  # no graph outlives its slot, and turns repeat after a period
            trainer._run_slot(batch, slots[turn % len(slots)], batch.z_teacher[:, 1], turn // len(slots))
    return CostEstimate(meter.peak_bytes, len(slots) * meter.flops // period, sum(p.numel() for p in trained))


@torch.no_grad()
def estimate_guided_step(
    architecture: Architecture, dtype: torch.dtype, *, batch_size: int, guidance_scale: float
) -> CostEstimate:
    """Predict one fine step of the guided teacher.

    Args:
        architecture: Architecture of the base.
        dtype: Dtype of the network.
        batch_size: Number of prompts in the batch.
        guidance_scale: The teacher's guidance scale; 1 halves the work.
    """
    backbone, cond = architecture.backbone(META, dtype), architecture.conditioning(META, dtype)
    meter = Meter()
    meter.hold([*backbone.unet.parameters(), *backbone.unet.buffers()])
    z = torch.empty(batch_size, *architecture.latent_shape, device=META)
    with flash_attention(meter), meter:
        guided_prediction(backbone.teacher, z, 500, cond.expand(batch_size), cond, guidance_scale)
    return CostEstimate(meter.peak_bytes, meter.flops)

"""Predict the memory and the work of both phases by running them on the meta device."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import Trajectories, guided_noise
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.training.meta_profiler import Meter, flash_attention
from rapm_cli.core.training.step_metrics import UpdateFlags

META = torch.device("meta")


@dataclass(frozen=True)
class Rehearsed:
    """Predicted memory and work.

    Args:
        peak_bytes: Peak memory in bytes, weights included.
        flops: Number of floating-point operations.
        trained: Number of trained parameters.
    """

    peak_bytes: int
    flops: int
    trained: int = 0


class _Rehearsing(Trainer):
    """A trainer on the meta device, where there are no numbers to update."""

    def _update(self, are_targets_finite: Tensor) -> UpdateFlags:
        for learner in self.learners.values():
            learner.zero_grad()
        return UpdateFlags(are_targets_finite, are_targets_finite, are_targets_finite, None)


def rehearse_training(
    backbone: Backbone,
    config: TrainConfig,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    num_slots: int,
    guidance_scale: float,
) -> Rehearsed:
    """Predict one iteration of phase 2.

    Args:
        backbone: Network on the meta device, without a LoRA; one is attached.
        config: Settings of the training; its batch size counts.
        cond: One row of conditioning, on the meta device.
        latent_shape: (C, h, w) of a latent.
        num_slots: N.
        guidance_scale: The teacher's guidance scale; 1 halves the teacher's work.
    """
    trainer = _Rehearsing(
        backbone, config, num_slots=num_slots, fine_steps=2, delta=1, guidance_scale=guidance_scale, uncond=cond
    )
    size = config.batch_size
    position = torch.empty(size, num_slots + 1, *latent_shape, device=META)
    batch = Trajectories(position, position[:, :num_slots].clone(), cond.expand(size))
    trained = [learner.weights.flat for learner in trainer.learners.values()]
    held = [*backbone.unet.parameters(), *backbone.unet.buffers(), *trained, *batch.tensors().values()]
    held += [trainer.average.flat] if trainer.average else []
    moments = [torch.empty_like(parameter) for parameter in trained for _ in range(2)]  # AdamW's
    meter, slots, period = Meter(), trainer.method.slots, trainer.method.period
    meter.hold([*held, *moments])
    with flash_attention(meter), meter:
        for turn in range(period):  # no graph outlives its slot, and turns repeat after a period
            trainer._run_slot(batch, slots[turn % len(slots)], batch.z_teacher[:, 1], turn // len(slots))
    return Rehearsed(meter.peak_bytes, len(slots) * meter.flops // period, sum(p.numel() for p in trained))


@torch.no_grad()
def rehearse_teacher(
    backbone: Backbone, cond: Conditioning, latent_shape: tuple[int, int, int], batch_size: int, guidance_scale: float
) -> Rehearsed:
    """Predict one fine step of the guided teacher.

    Args:
        backbone: Network on the meta device.
        cond: One row of conditioning, on the meta device.
        latent_shape: (C, h, w) of a latent.
        batch_size: Number of prompts in the batch.
        guidance_scale: The teacher's guidance scale; 1 halves the work.
    """
    meter = Meter()
    meter.hold([*backbone.unet.parameters(), *backbone.unet.buffers()])
    z = torch.empty(batch_size, *latent_shape, device=META)
    with flash_attention(meter), meter:
        guided_noise(backbone.teacher, z, 500, cond.expand(batch_size), cond, guidance_scale)
    return Rehearsed(meter.peak_bytes, meter.flops)

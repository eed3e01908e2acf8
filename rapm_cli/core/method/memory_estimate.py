"""Phases 1 and 2 on the meta device: what a card will have to hold and to compute."""

from dataclasses import dataclass

import torch

from rapm_cli.core.method.config import TrainConfig
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import Trajectories, guided_noise
from rapm_cli.core.network.backbone import Backbone, Conditioning
from rapm_cli.core.training.meta_profiler import Meter, flash_attention
from rapm_cli.core.training.step_metrics import SlotLog

META = torch.device("meta")


@dataclass(frozen=True)
class Rehearsed:
    """What a piece of work needs.

    Args:
        peak_bytes: The most that it holds at once, weights included.
        flops: What it computes.
        trained: Numbers that are trained.
    """

    peak_bytes: int
    flops: int
    trained: int = 0


class _Rehearsing(Trainer):
    """A trainer whose tensors have no data, so that there is nothing to update."""

    def _update(self, log: SlotLog) -> None:
        for learner in self.learners.values():
            learner.zero_grad()


def rehearse_training(
    backbone: Backbone,
    config: TrainConfig,
    cond: Conditioning,
    latent_shape: tuple[int, int, int],
    num_slots: int,
    guidance_scale: float,
) -> Rehearsed:
    """One iteration of phase 2.

    Args:
        backbone: On the meta device, without a LoRA; one is attached.
        config: Of the training; its batch is rehearsed.
        cond: One row of conditioning, on the meta device.
        latent_shape: (C, h, w).
        num_slots: N.
        guidance_scale: The teacher's; 1 halves the work of methods that ask it.
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
        for turn in range(period):  # no graph outlives its slot, and after so many all are alike
            trainer._slot(batch, slots[turn % len(slots)], batch.z_teacher[:, 1], turn // len(slots))
    return Rehearsed(meter.peak_bytes, len(slots) * meter.flops // period, sum(p.numel() for p in trained))


@torch.no_grad()
def rehearse_teacher(
    backbone: Backbone, cond: Conditioning, latent_shape: tuple[int, int, int], batch_size: int, guidance_scale: float
) -> Rehearsed:
    """One fine step of the guided teacher.

    Args:
        backbone: On the meta device, without a LoRA.
        cond: One row of conditioning, on the meta device.
        latent_shape: (C, h, w).
        batch_size: Prompts at once.
        guidance_scale: 1 halves the work.
    """
    meter = Meter()
    meter.hold([*backbone.unet.parameters(), *backbone.unet.buffers()])
    z = torch.empty(batch_size, *latent_shape, device=META)
    with flash_attention(meter), meter:
        guided_noise(backbone, z, 500, cond.expand(batch_size), cond, guidance_scale)
    return Rehearsed(meter.peak_bytes, meter.flops)

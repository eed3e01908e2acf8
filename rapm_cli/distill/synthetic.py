"""Both phases on random weights, which take the time and the memory of the real ones without a download."""

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES
from rapm_cli.bases.plans import Plan
from rapm_cli.bases.stopwatch import Timed, timed
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.method.trajectories import Trajectories, guided_prediction, initial_noise
from rapm_cli.core.network.backbone import Backbone
from rapm_cli.core.network.cuda_graphs import USUAL
from rapm_cli.distill.memory_plan import apply_plan, free_memory
from rapm_cli.runs.settings import Settings


def time_guided_step(
    architecture: Architecture, settings: Settings, size: int, device: torch.device, repeats: int = 3
) -> Timed:
    """Time one fine step of the guided teacher.

    Args:
        architecture: Architecture of the base.
        settings: Settings with the guidance and the precision.
        size: Number of prompts in the batch.
        device: Device to compute on.
        repeats: Number of measurements.
    """
    try:
        step = _guided_step(architecture, settings, size, device)
        return timed(step, device, repeats, warmups(1, device))
    finally:
        free_memory(device)


def _guided_step(
    architecture: Architecture, settings: Settings, size: int, device: torch.device
) -> Callable[[], Tensor]:
    backbone = _backbone(architecture, settings, device)
    row = architecture.conditioning(device, backbone.dtype)
    z = initial_noise(0, "trial", list(range(size)), architecture.latent_shape).to(device)
    cond, guidance_scale = row.expand(size), settings.teacher.guidance_scale
    return torch.no_grad()(lambda: guided_prediction(backbone.teacher, z, 500, cond, row, guidance_scale))


def time_iteration(
    architecture: Architecture, settings: Settings, plan: Plan | None, device: torch.device, repeats: int = 3
) -> Timed:
    """Time one iteration of phase 2 with all its slots.

    Args:
        architecture: Architecture of the base.
        settings: Settings of the training, with the precision.
        plan: Memory plan; None for none, as on a CPU.
        device: Device to compute on.
        repeats: Number of measurements.

    Raises:
        torch.OutOfMemoryError: The iteration does not fit in memory.
    """
    try:
        return _timed_walk(iteration(architecture, settings, plan, device), settings, device, repeats)
    finally:
        free_memory(device)


def _timed_walk(walk: Callable[[], int], settings: Settings, device: torch.device, repeats: int) -> Timed:
    """Time a walk of all slots. A walk may end early, because random weights may overflow in fp16; it is scaled up."""
    walked: list[int] = []
    num_slots = settings.teacher.num_slots
    time = timed(lambda: walked.append(walk()), device, repeats, warmups(num_slots, device))
    return dataclasses.replace(time, seconds=time.seconds * num_slots / walked[-1])


def warmups(passes: int, device: torch.device) -> int:
    """Return the number of runs before a GPU is at full speed, for work that makes `passes` equal network passes."""
    return USUAL // passes + 1 if device.type == "cuda" else 1


def iteration(
    architecture: Architecture, settings: Settings, plan: Plan | None, device: torch.device
) -> Callable[[], int]:
    """Return a function that runs one iteration of phase 2 and returns the number of slots walked."""
    backbone = _backbone(architecture, settings, device)
    apply_plan(plan, backbone)
    uncond = architecture.conditioning(backbone.device, backbone.dtype)
    trainer = Trainer.of_teacher(backbone, settings.training, settings.teacher, uncond)
    batch = _trajectories(architecture, settings, backbone)
    return lambda: len(trainer.train_step(batch, 0))


def _backbone(architecture: Architecture, settings: Settings, device: torch.device) -> Backbone:
    backbone, training = architecture.backbone(device, DTYPES[settings.teacher.precision]), settings.training
    backbone.configure_speedups(
        compiled=training.compile, channels_last=training.channels_last, recorded=training.cuda_graphs
    )
    return backbone


def _trajectories(architecture: Architecture, settings: Settings, backbone: Backbone) -> Trajectories:
    """Return noise in the shape of trajectories."""
    size, num_slots = settings.training.batch_size, settings.teacher.num_slots
    count = size * (2 * num_slots + 1)
    noise = initial_noise(0, "trial", list(range(count)), architecture.latent_shape).unflatten(0, (size, -1))
    cond = architecture.conditioning(backbone.device, backbone.dtype).expand(size)
    return Trajectories(noise[:, : num_slots + 1], noise[:, num_slots + 1 :], cond).to(backbone.device)

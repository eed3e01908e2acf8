"""From a run's settings to a trainer on its base, in the first process and in every other one."""

import torch

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.bases.device import DTYPES
from rapm_cli.core.common.errors import InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method import METHODS
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.training.distributed import World
from rapm_cli.distill.memory_plan import apply_plan, oom_fallback, plan_for
from rapm_cli.runs.settings import Settings


def loaded_base(base: Base, settings: Settings, device: torch.device, reporter: Reporter) -> LoadedBase:
    """Return the base of a run, whose parts are read when they are first used.

    Raises:
        InputError: The weights found here differ from those that the run was begun with.
        ConfigError: The settings ask for compilation, and torch cannot compile here.
    """
    weights = base.locate(reporter)
    if weights.identity != settings.base_identity:
        raise InputError(
            f"{weights.origin} holds other weights than the run was begun with",
            "give the same ones, or begin another run: --new",
        )
    loaded, training = LoadedBase(weights, device, DTYPES[settings.teacher.precision]), settings.training
    if training.compile or training.channels_last or not training.cuda_graphs:  # else the network is read on first use
        loaded.backbone.configure_speedups(
            compiled=training.compile, channels_last=training.channels_last, recorded=training.cuda_graphs
        )
    return loaded


def prepare_trainer(base: Base, loaded: LoadedBase, settings: Settings, world: World, reporter: Reporter) -> Trainer:
    """Fit a loaded base into the device's memory and return a fresh trainer on it.

    The plan may round the base; see `apply_plan`.

    Args:
        base: The base model.
        loaded: The same base, loaded; its text encoders and autoencoder leave the device.
        settings: Settings of the run.
        world: The processes that train together.
        reporter: Receives the plan, and warnings when memory runs out.

    Raises:
        OutOfMemoryError: No plan fits without rounding the base.
    """
    training = settings.training
    uncond = loaded.unconditional if METHODS[training.method].asks_teacher else None  # while the encoders are there
    loaded.offload()
    backbone = loaded.backbone
    architecture = base.architecture(reporter).at_largest(settings.teacher.sizes)
    plan = plan_for(architecture, settings, loaded.device, world.size, reporter, backbone)
    apply_plan(plan, backbone)
    on_oom = oom_fallback(plan, backbone, reporter, recomputes_all=training.gradient_checkpointing)
    return Trainer.of_teacher(backbone, training, settings.teacher, uncond, world=world, on_oom=on_oom)

"""Fitting the device: the plan that a distillation begins with, and what is done when memory runs out all the same."""

import dataclasses
import gc

import torch

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.estimate import rehearse_plan
from rapm_cli.bases.plans import GIB, PLANS, Plan, choose_plan, lower, needed
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.network.backbone import BLOCKS, Backbone
from rapm_cli.core.network.int8 import quantise
from rapm_cli.runs.settings import Settings

AUTO = "auto"


def plan_for(
    architecture: Architecture,
    settings: Settings,
    device: torch.device,
    processes: int,
    reporter: Reporter,
    backbone: Backbone | None = None,
) -> Plan | None:
    """The plan to train with, told to the reporter; None where memory is not planned: on a CPU, unless one is named.

    Args:
        architecture: Of the base.
        settings: Of the run.
        device: Where it trains.
        processes: That share its batches.
        reporter: Is told of it.
        backbone: The network, where it is on the device already: it is part of what the plan needs.

    Raises:
        OutOfMemoryError: None fits without a rounded base.
    """
    wanted = settings.training.vram
    if wanted != AUTO:
        plan = PLANS[wanted]
        reporter.say(f"plan {plan.name} GB: {plan.words}")
        return plan
    if device.type != "cuda":
        return None
    peaks: dict[str, int] = {}

    def peak_of(plan: Plan) -> int:
        peaks[plan.name] = predicted_peak(architecture, settings, plan, processes)
        return peaks[plan.name]

    # With --gradient-checkpointing all activations are recomputed, whatever the plan says.
    is_full = settings.training.gradient_checkpointing
    plans = [plan for plan in PLANS.values() if plan.recomputed == BLOCKS or not is_full]
    free = _free_bytes(device, backbone)
    plan = choose_plan(plans, peak_of, free)
    reporter.say(
        f"plan {plan.name} GB: {plan.words}; predicted peak {peaks[plan.name] / GIB:.1f} GiB, "
        f"{needed(peaks[plan.name]) / GIB:.1f} with all that comes beside, {free / GIB:.1f} GiB are free"
    )
    return plan


def _free_bytes(device: torch.device, backbone: Backbone | None) -> int:
    """Of a GPU, for the network and its training: what others leave, without the other parts that stay there."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    network = sum(parameter.nbytes for parameter in backbone.unet.parameters()) if backbone else 0
    return torch.cuda.mem_get_info(device)[0] + idle + network


def predicted_peak(architecture: Architecture, settings: Settings, plan: Plan, processes: int = 1) -> int:
    """Bytes that phase 2 holds at most, in each of the processes that share a batch."""
    share = dataclasses.replace(settings.training, batch_size=settings.training.batch_size // processes)
    return rehearse_plan(architecture, settings.teacher, share, plan).peak_bytes


def adopt(plan: Plan | None, backbone: Backbone) -> None:
    """Bring a network into the plan's form, before a LoRA is attached."""
    if plan and plan.is_quantised:
        quantise(backbone.unet)
        free_memory(backbone.device)
    if plan and plan.recomputed:
        backbone.enable_checkpointing(plan.recomputed)


def install_oom_fallback(plan: Plan | None, trainer: Trainer, reporter: Reporter) -> None:
    """Let a trainer that runs out of memory go on with the next lower plan."""
    # With --gradient-checkpointing all is recomputed already, and a plan that recomputes less would not help.
    now = PLANS["12"] if plan and trainer.config.gradient_checkpointing and not plan.is_quantised else plan

    def on_oom() -> bool:
        nonlocal now
        is_enough = trainer.backbone.disable_graphs()
        free_memory(trainer.backbone.device)
        if is_enough:
            reporter.warn("out of memory: this step is computed again, and the rest, as with --no-cuda-graphs")
            return True
        after = lower(now) if now else None
        if after is None:
            return False
        now = after
        trainer.backbone.enable_checkpointing(after.recomputed)
        reporter.warn(
            f"out of memory: this step is computed again, and the rest, with plan {after.name} GB ({after.words}); "
            f"--vram {after.name} begins with it"
        )
        return True

    trainer.on_oom = on_oom


def free_memory(device: torch.device) -> None:
    """Give back what nobody holds any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

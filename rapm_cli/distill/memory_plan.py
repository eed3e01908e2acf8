"""The memory plan of a distillation, and the fallback when memory runs out all the same."""

import dataclasses
import gc
from collections.abc import Callable

import torch

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.estimate import estimate_plan
from rapm_cli.bases.plans import GIB, PLANS, Plan, choose_plan, lower, needed
from rapm_cli.core.common.progress import Reporter
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
    """Choose the plan to train with and report it; None on a device whose memory is not planned, such as a CPU.

    Args:
        architecture: Architecture of the base.
        settings: Settings of the run; `--vram` may name a plan.
        device: Device of the training.
        processes: Number of processes that share a batch.
        reporter: Receives the plan.
        backbone: The network if it is on the device already, because its memory counts as free.

    Raises:
        OutOfMemoryError: No plan fits without rounding the base.
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
        f"{needed(peaks[plan.name]) / GIB:.1f} GiB with libraries, {free / GIB:.1f} GiB are free"
    )
    return plan


def _free_bytes(device: torch.device, backbone: Backbone | None) -> int:
    """Return the memory of a GPU that the network and its training can have, in bytes."""
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    network = sum(parameter.nbytes for parameter in backbone.unet.parameters()) if backbone else 0
    return torch.cuda.mem_get_info(device)[0] + idle + network


def predicted_peak(architecture: Architecture, settings: Settings, plan: Plan, processes: int = 1) -> int:
    """Return the predicted peak memory of phase 2 in each of the processes that share a batch, in bytes."""
    share = dataclasses.replace(settings.training, batch_size=settings.training.batch_size // processes)
    return estimate_plan(architecture, settings.teacher, share, plan).peak_bytes


def apply_plan(plan: Plan | None, backbone: Backbone) -> None:
    """Bring a network without a LoRA into the form of a plan.

    A plan with an 8-bit base rounds the frozen weights in place and sets `backbone.is_rounded`: there is no teacher
    afterwards. So trajectories, evaluation images, previews and contact sheets of the teacher are sampled before.
    """
    if plan and plan.is_quantised:
        quantise(backbone.unet)
        backbone.is_rounded = True
        free_memory(backbone.device)
    if plan and plan.recomputed:
        backbone.enable_checkpointing(plan.recomputed)


def oom_fallback(
    plan: Plan | None, backbone: Backbone, reporter: Reporter, *, recomputes_all: bool
) -> Callable[[], bool]:
    """Return what a trainer calls when memory runs out: drop the CUDA graphs, then take the next lower plan.

    Args:
        plan: Plan that the training begins with; None if memory is not planned.
        backbone: The network in training.
        reporter: Receives a warning at each step down.
        recomputes_all: True if the settings ask for all activations to be recomputed, whatever the plan is.
    """
    # If all is recomputed already, a plan that recomputes less would not help.
    now = PLANS["12"] if plan and recomputes_all and not plan.is_quantised else plan

    def on_oom() -> bool:
        nonlocal now
        is_enough = backbone.disable_graphs()
        free_memory(backbone.device)
        if is_enough:
            reporter.warn("out of memory: this step and all later ones run as with --no-cuda-graphs")
            return True
        after = lower(now) if now else None
        if after is None:
            return False
        now = after
        backbone.enable_checkpointing(after.recomputed)
        reporter.warn(
            f"out of memory: this step and all later ones use plan {after.name} GB ({after.words}); "
            f"--vram {after.name} begins with it"
        )
        return True

    return on_oom


def free_memory(device: torch.device) -> None:
    """Return unused memory to the device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""What a distillation will take of time, memory and disk, before anything is loaded or written."""

from dataclasses import dataclass

import psutil
import torch

from rapm_cli.bases import Base
from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES, MIB, describe_machine, peak_memory_mib
from rapm_cli.bases.estimate import rehearse_guidance, rehearse_plan
from rapm_cli.bases.plans import PLANS, Plan
from rapm_cli.bases.stopwatch import matmul_rate
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.memory_estimate import Rehearsed
from rapm_cli.distill.loop import MOST_COMMITS, STATE
from rapm_cli.distill.memory_plan import plan_for
from rapm_cli.distill.synthetic import time_guided_step, time_iteration
from rapm_cli.distill.trajectories import bytes_of_one
from rapm_cli.runs.settings import Settings

USUAL_SHARE = 0.3  # of a device's rate in products of matrices that networks reach
PATIENCE_SECONDS = 120.0
REPEATS = 2


@dataclass(frozen=True)
class Foreseen:
    """A forecast.

    Args:
        plan: How phase 2 fits the device.
        is_rough: Whether seconds are scaled from the device's rate instead of measured.
        seconds: Of each phase.
        peak_bytes: Most memory of the device; of a CPU what this process holds.
        disk_bytes: Of trajectories, and of commits.
        machine: The device in words.
    """

    plan: Plan
    is_rough: bool
    seconds: dict[str, float]
    peak_bytes: int
    disk_bytes: dict[str, int]
    machine: str


def foresee(base: Base, settings: Settings, device: torch.device, reporter: Reporter) -> Foreseen:
    """A distillation's plan, hours, memory and disk; of the base its shapes alone are needed.

    Both phases are tried with random weights, unless that would take minutes.

    Args:
        base: The base model.
        settings: Of the run.
        device: Where it would compute.
        reporter: Is told of the plan.

    Raises:
        OutOfMemoryError: None fits.
    """
    architecture = base.architecture(reporter)
    plan = plan_for(architecture, settings, device, 1, reporter)
    plan = plan or PLANS["12" if settings.training.gradient_checkpointing else "24"]
    size = min(base.defaults.rollout_batch, settings.teacher.trajectories)
    reporter.say("counting what both phases compute")
    step, walk = rehearsed(architecture, settings, size, plan)
    resident = psutil.Process().memory_info().rss
    share = USUAL_SHARE * matmul_rate(device, DTYPES[settings.teacher.precision])
    is_rough = (REPEATS + 1) * (step.flops + walk.flops) / share > PATIENCE_SECONDS
    peak = max(step.peak_bytes, walk.peak_bytes)
    if is_rough:
        step_seconds, walk_seconds = step.flops / share, walk.flops / share
        peak += resident if device.type == "cpu" else 0
    else:
        reporter.say("trying both phases with random weights")
        tried = time_guided_step(architecture, settings, size, device, REPEATS)
        walked = time_iteration(architecture, settings, plan, device, REPEATS)
        step_seconds, walk_seconds = tried.seconds, walked.seconds
        peak = max(tried.peak_bytes or 0, walked.peak_bytes or 0) or int(peak_memory_mib(device) * MIB)
    teacher, row = settings.teacher, architecture.conditioning(torch.device("meta"), DTYPES[settings.teacher.precision])
    steps = teacher.num_slots * teacher.fine_steps * teacher.trajectories / size
    disk = {
        "trajectories": teacher.trajectories * bytes_of_one(architecture.latent_shape, row, teacher.num_slots),
        "commits": 4 * STATE * walk.trained * MOST_COMMITS,
    }
    seconds = {"trajectories": steps * step_seconds, "training": settings.training.iterations * walk_seconds}
    return Foreseen(plan, is_rough, seconds, peak, disk, describe_machine(device))


def rehearsed(architecture: Architecture, settings: Settings, size: int, plan: Plan) -> tuple[Rehearsed, Rehearsed]:
    """One guided step of `size` prompts, and one iteration of phase 2, on the meta device."""
    teacher, dtype = settings.teacher, DTYPES[settings.teacher.precision]
    step = rehearse_guidance(architecture, dtype, batch_size=size, guidance_scale=teacher.guidance_scale)
    return step, rehearse_plan(architecture, teacher, settings.training, plan)


def to_record(foreseen: Foreseen) -> dict[str, object]:
    """A forecast as JSON values."""
    return {
        "dry_run": True,
        "plan": {"vram": foreseen.plan.name, "does": foreseen.plan.words},
        "is_rough": foreseen.is_rough,
        "seconds": foreseen.seconds,
        "peak_mib": foreseen.peak_bytes / MIB,
        "disk_bytes": foreseen.disk_bytes,
        "machine": foreseen.machine,
    }

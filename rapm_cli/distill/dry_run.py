"""Dry run: predict the time, memory and disk space of a distillation before anything is loaded or written."""

from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import torch

from rapm_cli.bases import Base
from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES, MIB, describe_machine, peak_memory_mib
from rapm_cli.bases.estimate import CostEstimate, estimate_guided_step, estimate_plan
from rapm_cli.bases.memory import read_memory
from rapm_cli.bases.plans import GIB, PLANS, Plan
from rapm_cli.bases.stopwatch import matmul_rate
from rapm_cli.core.common.progress import HOUR, Reporter, time_in_words
from rapm_cli.distill.loop import MAX_CHECKPOINTS, STATE
from rapm_cli.distill.memory_plan import plan_for
from rapm_cli.distill.synthetic import time_guided_step, time_iteration
from rapm_cli.distill.trajectories import bytes_per_trajectory
from rapm_cli.runs.settings import Settings

USUAL_SHARE = 0.3  # of a device's matrix-product rate that networks reach
PATIENCE_SECONDS = 120.0  # longest trial; above it, times are scaled from the device's rate
REPEATS = 2  # measured repetitions of a trial
TOO_LONG = 7 * 24 * HOUR  # seconds of a run from which a machine is not one for it


@dataclass(frozen=True)
class Forecast:
    """Predicted costs of a distillation.

    Args:
        plan: Memory plan of phase 2.
        is_rough: Whether the times are scaled from the device's rate instead of measured.
        seconds: Name of a phase to its seconds.
        peak_bytes: Peak memory of the device; on a CPU, of this process.
        disk_bytes: Bytes by what needs them; the key of the checkpoints is "commits", their folder's name.
        machine: Description of the device.
        memory_bytes: Size of the device's memory; on a CPU, of the machine's.
    """

    plan: Plan
    is_rough: bool
    seconds: dict[str, float]
    peak_bytes: int
    disk_bytes: dict[str, int]
    machine: str
    memory_bytes: int

    def warnings(self) -> Iterator[str]:
        """Yield the reasons why the device is not one for this distillation, each with a remedy."""
        remedy = "use an NVIDIA GPU with 12 GB or more; only the demo base is made for a CPU"
        seconds = sum(self.seconds.values())
        if seconds > TOO_LONG:
            yield f"the run would take about {time_in_words(seconds)} on this machine, {self.machine}: {remedy}"
        if self.peak_bytes > self.memory_bytes:
            sizes = f"{self.peak_bytes / GIB:.1f} GiB of memory, the machine has {self.memory_bytes / GIB:.1f} GiB"
            yield f"the run would need {sizes}: {remedy}"


def dry_run(base: Base, settings: Settings, device: torch.device, reporter: Reporter) -> Forecast:
    """Predict plan, time, memory and disk space of a distillation from the shapes of its base alone.

    Both phases are tried with random weights, unless that would take minutes. Of several sizes, the largest counts.

    Args:
        base: The base model.
        settings: Settings of the run.
        device: Device of the run.
        reporter: Receives the plan and progress.

    Raises:
        OutOfMemoryError: No plan fits the device.
    """
    architecture = base.architecture(reporter).at_largest(settings.teacher.sizes)
    plan = plan_for(architecture, settings, device, 1, reporter)
    plan = plan or PLANS["12" if settings.training.gradient_checkpointing else "24"]
    size = min(base.defaults.rollout_batch, settings.teacher.trajectories)
    reporter.say("counting what both phases compute")
    step, iteration = _count_costs(architecture, settings, size, plan)
    resident = psutil.Process().memory_info().rss
    share = USUAL_SHARE * matmul_rate(device, DTYPES[settings.teacher.precision])
    is_rough = (REPEATS + 1) * (step.flops + iteration.flops) / share > PATIENCE_SECONDS
    peak = max(step.peak_bytes, iteration.peak_bytes)
    if is_rough:
        step_seconds, iteration_seconds = step.flops / share, iteration.flops / share
        peak += resident if device.type == "cpu" else 0
    else:
        reporter.say("trying both phases with random weights")
        timed_step = time_guided_step(architecture, settings, size, device, REPEATS)
        timed_iteration = time_iteration(architecture, settings, plan, device, REPEATS)
        step_seconds, iteration_seconds = timed_step.seconds, timed_iteration.seconds
        peak = max(timed_step.peak_bytes or 0, timed_iteration.peak_bytes or 0) or int(peak_memory_mib(device) * MIB)
    teacher, row = settings.teacher, architecture.conditioning(torch.device("meta"), DTYPES[settings.teacher.precision])
    steps = teacher.num_slots * teacher.fine_steps * teacher.trajectories / size
    disk = {
        "trajectories": teacher.trajectories * bytes_per_trajectory(architecture.latent_shape, row, teacher.num_slots),
        "commits": 4 * STATE * iteration.trained * MAX_CHECKPOINTS,
    }
    seconds = {"trajectories": steps * step_seconds, "training": settings.training.iterations * iteration_seconds}
    return Forecast(plan, is_rough, seconds, peak, disk, describe_machine(device), read_memory(device).total)


def _count_costs(
    architecture: Architecture, settings: Settings, size: int, plan: Plan
) -> tuple[CostEstimate, CostEstimate]:
    """Run a guided step of `size` prompts and an iteration of phase 2 on the meta device, and return their costs."""
    teacher, dtype = settings.teacher, DTYPES[settings.teacher.precision]
    step = estimate_guided_step(architecture, dtype, batch_size=size, guidance_scale=teacher.guidance_scale)
    return step, estimate_plan(architecture, teacher, settings.training, plan)


def to_record(forecast: Forecast) -> dict[str, object]:
    """Return a forecast as JSON values."""
    return {
        "dry_run": True,
        "plan": {"vram": forecast.plan.name, "does": forecast.plan.words},
        "is_rough": forecast.is_rough,
        "seconds": forecast.seconds,
        "peak_mib": forecast.peak_bytes / MIB,
        "disk_bytes": forecast.disk_bytes,
        "machine": forecast.machine,
        "warnings": list(forecast.warnings()),
    }

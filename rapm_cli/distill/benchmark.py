"""Benchmark: measure both phases and sampling on this device, with random weights of the base's full size."""

import dataclasses
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.device import DTYPES, describe_machine
from rapm_cli.bases.estimate import CostEstimate, estimate_guided_step, estimate_plan
from rapm_cli.bases.loading import decoded
from rapm_cli.bases.plans import GIB, PLANS, Plan
from rapm_cli.bases.stopwatch import Timed, matmul_rate, timed
from rapm_cli.core.common.errors import ConfigError, require_shortage
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import sample_student
from rapm_cli.core.method.sizes import size_name
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.network.schedule import DDIM_SETTINGS
from rapm_cli.core.network.student import attach_lora, lora_weights
from rapm_cli.distill.dry_run import USUAL_SHARE
from rapm_cli.distill.memory_plan import free_memory
from rapm_cli.distill.synthetic import iteration, time_guided_step, time_iteration, warmups
from rapm_cli.runs.settings import Settings

REPEATS = 3  # measured repetitions
PATIENCE_SECONDS = 600.0  # longest benchmark that is not refused
TRAJECTORIES, ITERATIONS, AUTHORS_HOURS = 1000, 20_000, 31.5  # of the authors' run on an A6000
PLAIN, KERNELS = "plain", "without CUDA graphs"
VARIANTS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    KERNELS: {"cuda_graphs": False},
    "channels last": {"channels_last": True},
    "compiled": {"compile": True},
    "compiled, channels last": {"compile": True, "channels_last": True},
}


@dataclass(frozen=True)
class TeacherSpeed:
    """Speed of phase 1.

    Args:
        variant: Key of `VARIANTS`.
        batch_size: Number of prompts at once.
        step_seconds: Seconds of one guided step.
        trajectories_an_hour: Trajectories an hour, with all steps of all slots.
        peak_bytes: Peak memory measured; None if the device does not count it.
        predicted_bytes: Peak memory predicted on the meta device.
    """

    variant: str
    batch_size: int
    step_seconds: float
    trajectories_an_hour: float
    peak_bytes: int | None
    predicted_bytes: int


@dataclass(frozen=True)
class PlanSpeed:
    """Speed of phase 2 with a memory plan, limited to the memory of the cards that the plan is for.

    Args:
        variant: Key of `VARIANTS`.
        plan: The memory plan.
        flops: Floating-point operations of an iteration.
        predicted_bytes: Peak memory predicted on the meta device.
        time: Seconds and peak memory of an iteration; None if it does not fit.
    """

    variant: str
    plan: Plan
    flops: int
    predicted_bytes: int
    time: Timed | None


@dataclass(frozen=True)
class SamplingSpeed:
    """Speed of sampling and decoding with a student.

    Args:
        batch_size: Number of images at once.
        seconds: Seconds of an image by rapm with the LoRA merged, as `rapm generate` does if rounding keeps the update.
        beside_seconds: Seconds of an image with the LoRA beside the network.
        pipeline_seconds: Seconds of an image by the authors' diffusers pipeline with the LoRA fused.
    """

    batch_size: int
    seconds: float
    beside_seconds: float
    pipeline_seconds: float


@dataclass(frozen=True)
class Operation:
    """A row of a profile.

    Args:
        name: Name of a CPU operation or of a GPU kernel.
        seconds: Seconds spent in it, without the operations that it calls.
        calls: Number of calls.
    """

    name: str
    seconds: float
    calls: int


@dataclass(frozen=True)
class Benchmark:
    """All results of a benchmark.

    Args:
        settings: Settings that were measured.
        machine: Description of the device.
        size: Width and height of the images in pixels.
        matmul_rate: Highest measured rate of matrix products, in floating-point operations a second.
        teachers: Phase 1, the plain variant first.
        plans: Phase 2, each plan in the plain variant first.
        sampling: Sampling with a student.
        profile: Operations of one iteration, the most costly first; empty without --profile.
    """

    settings: Settings
    machine: str
    size: tuple[int, int]
    matmul_rate: float
    teachers: list[TeacherSpeed]
    plans: list[PlanSpeed]
    sampling: SamplingSpeed
    profile: list[Operation]

    @property
    def hours(self) -> tuple[float, float] | None:
        """Hours of phase 1 and of phase 2 for the authors' numbers of trajectories and iterations.

        The fastest variant and plan whose base is not in 8 bits; None if none fits.
        """
        found = [
            (TRAJECTORIES / teacher.trajectories_an_hour, ITERATIONS * speed.time.seconds / 3600)
            for teacher in self.teachers
            for speed in self.plans
            if speed.variant == teacher.variant and speed.time and not speed.plan.is_quantised
        ]
        return min(found, key=sum, default=None)


def benchmark(
    base: Base, settings: Settings, device: torch.device, reporter: Reporter, *, is_profiled: bool = False
) -> Benchmark:
    """Measure both phases with every memory plan, and sampling.

    Args:
        base: The base model; only its shapes are used.
        settings: Settings to measure.
        device: Device to measure.
        reporter: Receives progress.
        is_profiled: Also profile an iteration, and measure the other variants.

    Raises:
        ConfigError: The benchmark would take too long.
    """
    architecture, dtype = base.architecture(reporter), DTYPES[settings.teacher.precision]
    rate = matmul_rate(device, dtype)
    reporter.say(f"{rate / 1e12:.3g} TFLOP/s in matrix products; counting the operations of both phases")
    step = _predict_step(base, architecture, settings)
    plans = _predict_plans(architecture, settings)
    estimates = {"24": next(plans)}
    _refuse_long(base, REPEATS * (step.flops + len(PLANS) * estimates["24"].flops), rate)
    estimates |= dict(zip(list(PLANS)[1:], plans, strict=True))
    reporter.say("measuring phase 1")
    teachers = [_measure_teacher(base, architecture, settings, step, device)]
    speeds = []
    for plan in PLANS.values():
        reporter.say(f"measuring phase 2, plan {plan.name} GB")
        time = _time_on_card(architecture, settings, plan, device)
        speeds.append(PlanSpeed(PLAIN, plan, estimates[plan.name].flops, estimates[plan.name].peak_bytes, time))
    reporter.say("measuring sampling")
    sampling = _measure_sampling(base, architecture, settings, device)
    free_memory(device)
    fastest = min(speeds, key=lambda speed: speed.time.seconds if speed.time else math.inf)
    costly = []
    if is_profiled and fastest.time:
        reporter.say("profiling an iteration")
        warm = warmups(settings.teacher.num_slots, device)
        costly = _profile(iteration(architecture, settings, fastest.plan, device), device, warm)
        free_memory(device)
        for teacher, speed in _other_variants(base, architecture, settings, step, fastest, device, reporter):
            teachers.append(teacher)
            speeds.append(speed)
    machine = describe_machine(device)
    return Benchmark(settings, machine, architecture.image_size, rate, teachers, speeds, sampling, costly)


def _predict_step(base: Base, architecture: Architecture, settings: Settings) -> CostEstimate:
    teacher, size = settings.teacher, base.defaults.rollout_batch
    dtype = DTYPES[teacher.precision]
    return estimate_guided_step(architecture, dtype, batch_size=size, guidance_scale=teacher.guidance_scale)


def _predict_plans(architecture: Architecture, settings: Settings) -> Iterator[CostEstimate]:
    for plan in PLANS.values():
        yield estimate_plan(architecture, settings.teacher, settings.training, plan)


def _refuse_long(base: Base, flops: int, rate: float) -> None:
    seconds = flops / (USUAL_SHARE * rate)
    if seconds > PATIENCE_SECONDS:
        raise ConfigError(
            f"measuring {base.name} would take about {seconds / 3600:,.1f} hours on this device",
            "use a GPU, or --base demo",
        )


def _other_variants(
    base: Base,
    architecture: Architecture,
    settings: Settings,
    step: CostEstimate,
    fastest: PlanSpeed,
    device: torch.device,
    reporter: Reporter,
) -> Iterator[tuple[TeacherSpeed, PlanSpeed]]:
    """Measure both phases in each variant but the plain one, with the plan that is fastest in the plain one."""
    for variant, options in VARIANTS.items():
        if variant == PLAIN or (variant == KERNELS and device.type != "cuda"):
            continue
        reporter.say(f"measuring both phases {variant}")
        varied = dataclasses.replace(settings, training=dataclasses.replace(settings.training, **options))
        try:
            teacher = _measure_teacher(base, architecture, varied, step, device, variant)
            time = _time_on_card(architecture, varied, fastest.plan, device)
        except ConfigError as error:
            reporter.warn(error.message)
            continue
        except RuntimeError as error:
            require_shortage(error)
            reporter.warn(f"{variant}: out of memory in phase 1; it is left out")
            continue
        yield teacher, dataclasses.replace(fastest, variant=variant, time=time)


def _measure_teacher(
    base: Base,
    architecture: Architecture,
    settings: Settings,
    step: CostEstimate,
    device: torch.device,
    variant: str = PLAIN,
) -> TeacherSpeed:
    size = base.defaults.rollout_batch
    time = time_guided_step(architecture, settings, size, device, REPEATS)
    steps = settings.teacher.num_slots * settings.teacher.fine_steps
    return TeacherSpeed(
        variant, size, time.seconds, 3600 * size / (steps * time.seconds), time.peak_bytes, step.peak_bytes
    )


def _time_on_card(architecture: Architecture, settings: Settings, plan: Plan, device: torch.device) -> Timed | None:
    """Measure an iteration on a card of the plan's size; None if it does not fit."""
    with _card_of(plan, device):
        try:
            return time_iteration(architecture, settings, plan, device, REPEATS)
        except RuntimeError as error:
            require_shortage(error)
        free_memory(device)
        return None


@contextmanager
def _card_of(plan: Plan, device: torch.device) -> Iterator[None]:
    """Limit a GPU to the memory of a card of the plan's size, less one GiB for a desktop."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.mem_get_info(device)[1]
    torch.cuda.set_per_process_memory_fraction(min(1.0, (int(plan.name) - 1) * GIB / total), device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


@torch.no_grad()
def _measure_sampling(
    base: Base, architecture: Architecture, settings: Settings, device: torch.device
) -> SamplingSpeed:
    """Measure sampling by rapm and by the authors' pipeline, with the same network and autoencoder.

    Both decode in float32, as the authors' pipeline in fp16 does. A merged LoRA costs nothing, so the network without a
    LoRA represents both.
    """
    size, num_slots = base.defaults.image_batch, settings.teacher.num_slots
    dtype = DTYPES[settings.teacher.precision]
    backbone = architecture.backbone(device, dtype)
    vae: Any = architecture.autoencoder(device, torch.float32)
    cond = architecture.conditioning(device, dtype).expand(size)
    z = initial_noise(0, "benchmark", list(range(size)), architecture.latent_shape).to(device)
    scaling = vae.config.scaling_factor
    pipeline = _pipeline(architecture, backbone.unet, vae)
    texts = {"prompt_embeds": cond.tokens} | ({} if cond.pooled is None else {"pooled_prompt_embeds": cond.pooled})
    common = {"guidance_scale": 1.0, "num_inference_steps": num_slots, "output_type": "latent", "latents": z.to(dtype)}
    often = {"repeats": REPEATS, "warmups": warmups(num_slots, device)}
    theirs = timed(lambda: decoded(vae, pipeline(**texts, **common).images, scaling), device, **often)

    def sample() -> object:
        return decoded(vae, sample_student(backbone.student, z, cond, num_slots)[0], scaling)

    merged = timed(sample, device, **often)
    attach_lora(backbone, rank=1, alpha=1.0)
    lora_weights(backbone)  # converts the LoRA to the network's dtype
    beside = timed(sample, device, **often)
    return SamplingSpeed(size, merged.seconds / size, beside.seconds / size, theirs.seconds / size)


def _pipeline(architecture: Architecture, unet: Any, vae: Any) -> Any:
    """Build a diffusers pipeline with the authors' scheduler and without text encoders."""
    import diffusers

    scheduler = diffusers.DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **DDIM_SETTINGS
    )
    parts = {"vae": vae, "unet": unet, "scheduler": scheduler, "text_encoder": None, "tokenizer": None}
    if architecture.has_pooled_text:
        more = {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, **more)
    else:
        more = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = diffusers.StableDiffusionPipeline(**parts, **more)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _profile(work: Callable[[], object], device: torch.device, warm: int) -> list[Operation]:
    """Profile a call after `warm` unmeasured ones; the most costly operations come first."""
    from torch.profiler import ProfilerActivity, profile

    is_gpu = device.type == "cuda"
    for _ in range(warm):
        work()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if is_gpu else [])]) as seen:
        work()
    rows = [row for row in seen.key_averages() if row.device_type.name == ("CUDA" if is_gpu else "CPU")]
    operations = [
        Operation(row.key, (row.self_device_time_total if is_gpu else row.self_cpu_time_total) / 1e6, row.count)
        for row in rows
    ]
    return sorted(operations, key=lambda one: one.seconds, reverse=True)


def to_record(made: Benchmark) -> dict[str, Any]:
    """Return a benchmark as JSON values."""
    hours = made.hours
    return {
        "machine": made.machine,
        "settings": made.settings.recipe(),
        "side_px": made.size[1],
        "size": size_name(made.size),
        "matmul_tflops": made.matmul_rate / 1e12,
        "teachers": [_speed_record(speed) for speed in made.teachers],
        "plans": [
            _speed_record(speed)
            | {"share_of_matmul": speed.flops / speed.time.seconds / made.matmul_rate if speed.time else None}
            for speed in made.plans
        ],
        "drawing": asdict(made.sampling) | {"ratio": made.sampling.seconds / made.sampling.pipeline_seconds},
        "hours": None if hours is None else {"trajectories": hours[0], "training": hours[1]},
        "authors_hours": AUTHORS_HOURS,
        "profile": [asdict(row) for row in made.profile],
    }


def _speed_record(speed: TeacherSpeed | PlanSpeed) -> dict[str, Any]:
    """Return a speed as JSON values; files call the variant "way"."""
    return {"way" if name == "variant" else name: value for name, value in asdict(speed).items()}

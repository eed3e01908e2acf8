"""Print predicted and measured speed and memory."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from rapm_cli.cli.console import Output
from rapm_cli.core.common.progress import time_in_words
from rapm_cli.core.method.sizes import size_name

if TYPE_CHECKING:
    from rapm_cli.bases import Base
    from rapm_cli.distill.benchmark import Benchmark

MIB = 2**20
SLOWEST = 10  # operations of a profile that are printed


def dry_run(out: Output, base: "Base", given: dict[str, Any], prompts: str | None, device: str) -> None:
    """Print the time, memory and disk space that `rapm distill` would need.

    Args:
        out: Prints.
        base: The base model.
        given: Options of the user, as `settings_for` takes them.
        prompts: Prompt file; None for the base's own prompts.
        device: Value of `--device`.
    """
    from rapm_cli.bases.device import find_device
    from rapm_cli.bases.plans import GIB
    from rapm_cli.core.method.trainer import uses_option
    from rapm_cli.distill.dry_run import dry_run as predict
    from rapm_cli.distill.dry_run import to_record as forecast_record
    from rapm_cli.distill.resolve_run import settings_without_weights
    from rapm_cli.inspect.inspect import size_in_words
    from rapm_cli.runs.launcher import world_size
    from rapm_cli.runs.prompts import read_prompts

    wanted, place = None if prompts is None else read_prompts(prompts, out), find_device(device)
    settings = settings_without_weights(base, given, wanted, place, out)
    made = predict(base, settings, place, out)
    counts = {
        "trajectories": f"{settings.teacher.trajectories:,} trajectories",
        "training": f"{settings.training.iterations:,} iterations",
    }
    method, training = settings.training.method, asdict(settings.training)
    out.fact("teacher", _options(asdict(settings.teacher)))
    out.fact("student", _options({name: value for name, value in training.items() if uses_option(name, method)}))
    out.fact("prompts", f"{len(set(settings.prompts)):,} different ones; comparison at the end on {settings.samples}")
    # Without a GPU no plan is chosen: its size is that of a GPU's memory.
    out.fact("plan", f"{made.plan.name} GB, {made.plan.words}" if place.type == "cuda" else made.plan.words)
    for phase, seconds in made.seconds.items():
        out.fact(phase, f"{'rough: ' if made.is_rough else ''}{time_in_words(seconds)}, {counts[phase]}")
    out.fact("peak memory", f"{made.peak_bytes / GIB:.2f} GiB")
    for thing, size in made.disk_bytes.items():
        out.fact("disk", f"{size_in_words(size)} for {'checkpoints' if thing == 'commits' else thing}")
    out.fact("machine", made.machine)
    for warning in made.warnings():
        out.warn(warning)
    if world_size() > 1:
        out.fact("processes", f"predicted for one process; {world_size()} were started")
    out.result(forecast_record(made) | {"settings": settings.recipe()})


def _options(values: dict[str, Any]) -> str:
    """Return settings as a user gives them; those that are empty, and the base, are left out."""
    from rapm_cli.core.method.config import option_name
    from rapm_cli.core.method.setting_words import in_words

    shown = {name: value for name, value in values.items() if name != "base" and value != ()}
    return ", ".join(f"{option_name(name)} {in_words(value)}" for name, value in shown.items())


def benchmark(out: Output, name: str, device: str, precision: str, *, is_profiled: bool) -> None:
    """Measure and print speed and memory on a device, with random weights.

    Args:
        out: Prints.
        name: Base model, as `--base` takes it.
        device: Value of `--device`.
        precision: Value of `--precision`.
        is_profiled: Whether to list the slowest operations too.
    """
    from rapm_cli.bases import find_base
    from rapm_cli.bases.device import find_device
    from rapm_cli.distill.benchmark import benchmark as measure
    from rapm_cli.distill.benchmark import to_record
    from rapm_cli.distill.resolve_run import settings_without_weights

    base, place = find_base(name, out), find_device(device)
    settings = settings_without_weights(base, {"precision": precision}, None, place, out)
    made = measure(base, settings, place, out, is_profiled=is_profiled)
    _phases(out, made)
    _sampling(out, made)
    if made.profile:
        total = sum(row.seconds for row in made.profile)
        rows = [
            [row.name[:60], f"{1000 * row.seconds:.1f}", f"{row.seconds / total:.0%}", str(row.calls)]
            for row in made.profile[:SLOWEST]
        ]
        title = f"slowest operations of an iteration; all operations take {total:.3f} s"
        out.table(title, ["", "ms", "share", "calls"], rows)
    out.result(to_record(made))


def _phases(out: Output, made: "Benchmark") -> None:
    from rapm_cli.distill.benchmark import PLAIN

    teacher, training, rate = made.settings.teacher, made.settings.training, made.matmul_rate
    out.data(
        f"{made.settings.base_name}, {size_name(made.size)} px, random weights, {teacher.precision}, {made.machine}: "
        f"{rate / 1e12:.3g} TFLOP/s in matrix products"
    )
    out.table(
        f"phase 1: {teacher.num_slots} x {teacher.fine_steps} guided steps, "
        f"{made.teachers[0].batch_size} prompts at once",
        ["", "s/step", "trajectories/h", "peak MiB", "predicted MiB"],
        [
            [
                one.variant,
                f"{one.step_seconds:.3f}",
                f"{one.trajectories_an_hour:.0f}",
                *_peaks(one.peak_bytes, one.predicted_bytes),
            ]
            for one in made.teachers
        ],
    )
    rows = []
    for speed in made.plans:
        cells, peak = ["does not fit", "", ""], None
        if speed.time:
            reached, peak = speed.flops / speed.time.seconds, speed.time.peak_bytes
            cells = [f"{speed.time.seconds:.3f}", f"{reached / 1e12:.3g}", f"{reached / rate:.0%}"]
        words = speed.plan.words if speed.variant == PLAIN else speed.variant
        rows.append([f"{speed.plan.name} GB, {words}", *cells, *_peaks(peak, speed.predicted_bytes)])
    out.table(
        f"phase 2: {teacher.num_slots} slots, batch {training.batch_size}, rank {training.rank}, "
        f"discriminator {training.discriminator}",
        ["plan", "s/iteration", "TFLOP/s", "of matrix products", "peak MiB", "predicted MiB"],
        rows,
    )


def _peaks(measured: int | None, predicted: int) -> list[str]:
    return ["-" if measured is None else f"{measured / MIB:,.0f}", f"{predicted / MIB:,.0f}"]


def _sampling(out: Output, made: "Benchmark") -> None:
    from rapm_cli.distill.benchmark import AUTHORS_HOURS, ITERATIONS, TRAJECTORIES

    one = made.sampling
    out.table(
        f"sampling: {made.settings.teacher.num_slots} steps, {one.batch_size} images at once, decoded in float32",
        ["", "images/s"],
        [
            ["rapm, LoRA merged", f"{1 / one.seconds:.3g}"],
            ["rapm, LoRA not merged", f"{1 / one.beside_seconds:.3g}"],
            ["diffusers' pipeline, LoRA fused", f"{1 / one.pipeline_seconds:.3g}"],
        ],
    )
    out.data(f"rapm takes {one.seconds / one.pipeline_seconds:.2f} times as long per image as diffusers' pipeline")
    if made.hours:
        first, second = made.hours
        out.data(
            f"{TRAJECTORIES:,} trajectories {first:.1f} h, {ITERATIONS:,} iterations {second:.1f} h; "
            f"the authors took {AUTHORS_HOURS} h for SDXL on an A6000"
        )

"""Resolve which run a `rapm distill` command means, and its settings."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rapm_cli.bases import Base, find_base
from rapm_cli.bases.device import describe_machine, find_device, find_precision
from rapm_cli.bases.find import find_again
from rapm_cli.bases.merged import with_loras
from rapm_cli.bases.plans import is_rounded
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig, TrainConfig
from rapm_cli.core.method.trainer import check_fit, check_options
from rapm_cli.distill.warm_start import check_init_lora
from rapm_cli.formats.lora_ref import LoraRef
from rapm_cli.runs.base_loras import find_refs
from rapm_cli.runs.checkpoints import read_settings
from rapm_cli.runs.run import Run, all_runs, find_run, new_run, newest_unfinished_run
from rapm_cli.runs.settings import Settings

# Settings of a run beside those of its teacher and its training that an option may change when it is resumed.
OWN = ("samples", "checkpoint_every", "deterministic", "report_to", "preview_every", "preview_prompts", "init_lora")
MAX_PREVIEWS = 8  # prompts of a preview


def settings_for(
    base: Base,
    given: dict[str, Any],
    prompts: list[str] | None,
    device: torch.device,
    reporter: Reporter,
    stored: Settings | None = None,
    processes: int = 1,
) -> Settings:
    """Return the checked settings of a command, with the identity of the base's weights.

    Arguments and errors as in `settings_without_weights`. Missing weights are downloaded.
    """
    settings = settings_without_weights(base, given, prompts, device, reporter, stored, processes)
    return dataclasses.replace(settings, base_identity=base.locate(reporter).identity)


def settings_without_weights(
    base: Base,
    given: dict[str, Any],
    prompts: list[str] | None,
    device: torch.device,
    reporter: Reporter,
    stored: Settings | None = None,
    processes: int = 1,
) -> Settings:
    """Return the checked settings of a command, without the identity of weights, which need not exist.

    Args:
        base: The base model.
        given: Options of the user, by field of `TeacherConfig`, `TrainConfig` or `Settings`; precision may be "auto".
        prompts: Prompts of the user; None for the stored ones, or the base's own.
        device: Device to compute on, which the precision "auto" depends on.
        reporter: Receives warnings.
        stored: Settings of the run to resume; they replace the base's defaults.
        processes: Number of processes that train together, each on the given batch size.

    Raises:
        ConfigError: A setting is out of range or in conflict with another.
    """
    values: dict[str, Any] = dataclasses.asdict(base.defaults) | {"samples": 64}
    if stored:
        values |= {**dataclasses.asdict(stored.teacher), **dataclasses.asdict(stored.training)}
        values |= {name: getattr(stored, name) for name in OWN}
    values |= given
    values["preview_prompts"] = _preview_prompts(base, values, given, reporter)
    if stored is None or "batch_size" in given:
        values["batch_size"] *= processes
    if values["batch_size"] % processes:
        raise ConfigError(
            f"{processes} processes cannot share batches of {values['batch_size']}, with which the run was begun",
            "start a number of processes that divides it",
        )
    values |= {"base": base.name, "precision": find_precision(values.get("precision", "auto"), device)}
    check_init_lora(base, given, reporter)
    teacher, training = TeacherConfig(**_fields(TeacherConfig, values)), TrainConfig(**_fields(TrainConfig, values))
    check_fit(training, teacher.num_slots)
    for name in teacher.sizes:
        base.size(name, reporter)
    check_options(given, training.method)
    is_same = stored and prompts is None and len(stored.prompts) == teacher.trajectories
    chosen = stored.prompts if stored and is_same else _training_prompts(base, teacher, prompts, reporter)
    settings = Settings(
        source=base.source,
        base_name=base.name,
        base_identity="",
        teacher=teacher,
        training=training,
        prompts=tuple(chosen),
        device=device.type,
        machine=_machine(device, training, processes),
        base_loras=base.loras,
        **{name: values[name] for name in OWN if name in values},
    )
    for warning in _odd_values(settings, given):
        reporter.warn(warning)
    return settings


def _odd_values(settings: Settings, given: Collection[str]) -> Iterator[str]:
    """Yield a warning for each value that is valid and hardly meant: a whole run would show it only at its end."""
    training, trajectories = settings.training, settings.teacher.trajectories
    if training.batch_size > trajectories:
        yield f"--batch-size {training.batch_size} is above the {trajectories} --trajectories: some repeat"
    if settings.teacher.stride > trajectories:
        yield f"--size names {settings.teacher.stride} sizes for {trajectories} --trajectories: some have none"
    if training.warmup >= max(2, training.iterations):
        yield (
            f"--warmup {training.warmup} covers all {training.iterations} --iterations: the learning rate only rises; "
            f"give --warmup {training.iterations // 10} or more --iterations"
        )
    if "checkpoint_every" in given and settings.checkpoint_every > training.iterations:
        yield (
            f"--checkpoint-every {settings.checkpoint_every} is above the {training.iterations} --iterations: "
            "a crash loses all of the training"
        )
    if settings.preview_every > training.iterations:
        yield f"--preview-every {settings.preview_every} is above the {training.iterations} --iterations: no previews"


@dataclass(frozen=True)
class ResolvedRun:
    """A run to work on.

    Args:
        run: The run.
        settings: Its settings.
        base: The base model.
        device: Device to compute on.
        is_begun: Whether the run existed before.
    """

    run: Run
    settings: Settings
    base: Base
    device: torch.device
    is_begun: bool

    @property
    def is_complete(self) -> bool:
        """True if nothing is left to do."""
        return self.is_begun and self.run.is_complete(self.settings.training.iterations, self.settings.samples)


def begin_run(
    base: Base,
    given: dict[str, Any],
    prompts: list[str] | None,
    device_name: str,
    reporter: Reporter,
    *,
    output: Path | None,
    is_new: bool,
    is_strict: bool,
    processes: int = 1,
) -> ResolvedRun:
    """Make a new run, or return the run in the given folder, or the unfinished run that the same command began.

    Args:
        base: The base model.
        given: Options of the user, as in `settings_without_weights`.
        prompts: Prompts of the user, as in `settings_without_weights`.
        device_name: Device, as `--device` takes it.
        reporter: Receives warnings.
        output: Folder that the user gave; a run in it is resumed.
        is_new: Make a new run even if an unfinished one has the same settings.
        is_strict: Raise at damaged settings instead of using those of another checkpoint.
        processes: Number of processes that train together.

    Raises:
        ConfigError: A setting is out of range, or the folder holds a run with other settings.
        InputError: The folder holds something else.
        DamagedError: Settings are damaged, and `is_strict` is true.
    """
    device = find_device(device_name)
    settings = settings_for(base, given, prompts, device, reporter, processes=processes)
    run = None if is_new else _unfinished_like(settings) if output is None else Run(output.resolve())
    if run is None or not run.is_begun:
        return ResolvedRun(new_run(settings.base_name, output), settings, base, device, False)
    stored = _read_stored(run, reporter, is_strict=is_strict)
    settings = settings.named_as(stored)
    check_same(run, stored, settings, may_round=False)
    _warn_of_other_bits(stored, settings, reporter)
    return ResolvedRun(run, settings, base, device, True)


def resume_run(
    name: str | None,
    base_name: str | None,
    given: dict[str, Any],
    prompts: list[str] | None,
    device_name: str,
    reporter: Reporter,
    *,
    is_strict: bool,
    processes: int = 1,
    base_loras: Sequence[LoraRef] = (),
) -> ResolvedRun:
    """Return a run with its own settings, changed by the options given.

    Arguments as in `begin_run`, and:

    Args:
        name: Name or folder of the run; None for the newest unfinished one.
        base_name: Base as `--base` takes it; None for the stored one.
        given: Options of the user.
        prompts: Prompts of the user.
        device_name: Device; "auto" is the kind of device on which the run was begun, if there is one.
        reporter: Receives warnings.
        is_strict: Raise at damaged settings.
        processes: Number of processes that train together.
        base_loras: LoRAs that the base is merged with, which must be those of the run; none for the run's.

    Raises:
        InputError: There is no such run, its settings are lost, or one of its LoRAs is not found.
        ConfigError: An option would make it another run.
        DamagedError: Settings are damaged, and `is_strict` is true.
    """
    run = newest_unfinished_run() if name is None else find_run(name)
    if run is None or not run.is_begun:
        raise InputError(f"{name!r} is not a run that can be resumed", "give the name or the folder of a run")
    with run.explain_stops():
        stored = _read_stored(run, reporter, is_strict=is_strict)
        base = find_base(base_name, reporter) if base_name else find_again(stored.source, reporter)
        base = with_loras(base, base_loras or _stored_loras(run, stored), reporter)
        device = _device_of(device_name, stored)
        settings = settings_for(base, given, prompts, device, reporter, stored, processes).named_as(stored)
    check_same(run, stored, settings, may_round=True)
    _warn_of_other_bits(stored, settings, reporter)
    return ResolvedRun(run, settings, base, device, True)


def _stored_loras(run: Run, stored: Settings) -> tuple[LoraRef, ...]:
    """Return where the LoRAs are now that a run's base is merged with."""
    paths = [lora.path for lora in stored.base_loras]
    return find_refs([lora.record for lora in stored.base_loras], [run.folder, *paths], run.folder)


def check_same(run: Run, stored: Settings, wanted: Settings, *, may_round: bool) -> None:
    """Refuse to resume a run with settings that would make it another run.

    Args:
        run: The run.
        stored: Its stored settings.
        wanted: Settings to resume it with.
        may_round: Whether only one of the two may have a base in 8 bits.

    Raises:
        ConfigError: A setting differs that must not, or there are fewer iterations than are done.
    """
    if differences := stored.differences(wanted, may_round=may_round):
        raise ConfigError(
            f"{run.folder} was begun with {'; '.join(differences)}",
            "leave that out, or begin another run: --new or --output, without --resume",
        )
    done = run.iterations_saved
    if wanted.training.iterations < done:
        raise ConfigError(
            f"--iterations {wanted.training.iterations} is below the {done} that {run.folder} has done",
            f"give at least {done}",
        )


def _unfinished_like(settings: Settings) -> Run | None:
    """Return the newest unfinished run with these settings, or None."""
    for run in all_runs():
        if run.is_begun and not run.is_finished:
            with contextlib.suppress(InputError):  # the run has no readable settings
                stored = read_settings(run)[0]
                is_as_long = stored.training.iterations == settings.training.iterations
                if is_as_long and not stored.differences(settings, may_round=False):
                    return run
    return None


def _read_stored(run: Run, reporter: Reporter, *, is_strict: bool) -> Settings:
    stored, damage = read_settings(run)
    if damage and is_strict:
        raise damage[0]
    for error in damage:
        reporter.warn(f"{error.message}; using the settings of another checkpoint")
    return stored


def _device_of(name: str, stored: Settings) -> torch.device:
    if name == "auto":
        with contextlib.suppress(ConfigError):  # this machine has no such device
            return find_device(stored.device)
    return find_device(name)


def _warn_of_other_bits(stored: Settings, settings: Settings, reporter: Reporter) -> None:
    if settings.machine != stored.machine:
        reporter.warn(f"the run last ran on {stored.machine}: on {settings.machine} its bits will differ")


def _machine(device: torch.device, training: TrainConfig, processes: int) -> str:
    """Describe the device, and the options on which the bits of training depend."""
    effects = {
        "compiled": training.compile,
        "channels last": training.channels_last,
        "8-bit base": is_rounded(training.vram),
    }
    return ", ".join([describe_machine(device, processes), *(words for words, is_on in effects.items() if is_on)])


def _training_prompts(base: Base, config: TeacherConfig, given: list[str] | None, reporter: Reporter) -> list[str]:
    """Return one prompt for each trajectory: the user's, repeated if they are few, or the base's own."""
    count = config.trajectories
    if not given:
        return base.training_prompts(count, config.seed)
    if len(given) > count:
        reporter.warn(f"{len(given) - count} of {len(given)} prompts are left out: give --trajectories")
    if warning := next((text for prompt in given[:count] if (text := base.warn(prompt))), ""):
        reporter.warn(warning)
    return [given[k % len(given)] for k in range(count)]


def _preview_prompts(base: Base, values: dict[str, Any], given: Collection[str], reporter: Reporter) -> tuple[str, ...]:
    """Return the prompts of the previews; those that the user has just given are checked."""
    prompts: tuple[str, ...] = tuple(values.get("preview_prompts", ()))
    if "preview_prompts" not in given:
        return prompts
    if not values.get("preview_every"):
        raise ConfigError("--preview-prompts makes no previews by itself", "give --preview-every too, such as 100")
    if len(prompts) > MAX_PREVIEWS:
        reporter.warn(f"--preview-prompts: previews show the first {MAX_PREVIEWS} of {len(prompts)} prompts")
    prompts = prompts[:MAX_PREVIEWS]
    if warning := next(filter(None, map(base.warn, prompts)), ""):
        reporter.warn(f"--preview-prompts: {warning}")
    return prompts


def _fields(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}

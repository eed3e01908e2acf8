"""Which run a command means, and with which settings."""

import contextlib
import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rapm_cli.bases import Base, find_base
from rapm_cli.bases.device import describe_machine, find_device, find_precision
from rapm_cli.bases.plans import is_rounded
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig, TrainConfig, to_json
from rapm_cli.core.method.trainer import check_fit, check_heeded
from rapm_cli.runs.checkpoints import read_settings
from rapm_cli.runs.run import Run, all_runs, find_run, new_run, newest_unfinished_run
from rapm_cli.runs.settings import Settings


def settings_for(
    base: Base,
    given: dict[str, Any],
    prompts: list[str] | None,
    device: torch.device,
    reporter: Reporter,
    stored: Settings | None = None,
    processes: int = 1,
) -> Settings:
    """The settings that a command asks for, checked, with the identity of the base's weights.

    Arguments and errors as of `settings_without_weights`; what is missing of the weights is fetched.
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
    """The settings that a command asks for, checked; none of the base's weights is looked for.

    Args:
        base: The base model.
        given: What the user named, by field of `TeacherConfig`, `TrainConfig` or `Settings`; precision may be "auto".
        prompts: The user's prompts; None for those stored, else the base's own.
        device: Where to compute, which "auto" depends on.
        reporter: Is told of prompts that are left out.
        stored: Those of the run that is resumed; what is not given comes from it, else from the base's defaults.
        processes: That train together, on the named batch size each.

    Raises:
        ConfigError: A setting is out of range or in conflict with another.
    """
    values: dict[str, Any] = dataclasses.asdict(base.defaults) | {"samples": 64, "deterministic": False}
    if stored:
        values |= {**to_json(stored.teacher), **to_json(stored.training)}
        values |= {name: getattr(stored, name) for name in ("samples", "save_every", "deterministic")}
        values["slot_weights"] = stored.training.slot_weights
    values |= given
    if stored is None or "batch_size" in given:
        values["batch_size"] *= processes
    if values["batch_size"] % processes:
        raise ConfigError(
            f"{processes} processes cannot share batches of {values['batch_size']}, which the run was begun with",
            "start as many processes as divide it",
        )
    values |= {"base": base.name, "precision": find_precision(values.get("precision", "auto"), device)}
    teacher, training = TeacherConfig(**_of(TeacherConfig, values)), TrainConfig(**_of(TrainConfig, values))
    check_fit(training, teacher.num_slots)
    check_heeded(given, training.method)
    if training.batch_size > teacher.trajectories:
        reporter.warn(
            f"--batch-size {training.batch_size} is above the {teacher.trajectories} --trajectories: some repeat"
        )
    is_same = stored and prompts is None and len(stored.prompts) == teacher.trajectories
    chosen = stored.prompts if stored and is_same else _training_prompts(base, teacher, prompts, reporter)
    return Settings(
        source=base.source,
        base_name=base.name,
        base_identity="",
        teacher=teacher,
        training=training,
        prompts=tuple(chosen),
        samples=values["samples"],
        save_every=values["save_every"],
        device=device.type,
        machine=_machine(device, training, processes),
        deterministic=values["deterministic"],
    )


@dataclass(frozen=True)
class Start:
    """A run to work on.

    Args:
        run: Its folder.
        settings: What it is made from.
        base: The base model.
        device: Where to compute.
        is_begun: Whether it was begun before.
    """

    run: Run
    settings: Settings
    base: Base
    device: torch.device
    is_begun: bool

    @property
    def is_complete(self) -> bool:
        """True where nothing is left to do."""
        return self.is_begun and self.run.is_complete(self.settings.training.iterations, self.settings.samples)


def begin(
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
) -> Start:
    """A new run, or the one in the named folder, or the unfinished one that the same command began.

    Args:
        base: The base model.
        given: As in `settings_for`.
        prompts: As in `settings_for`.
        device_name: As `--device` takes it.
        reporter: Sees warnings.
        output: The folder that the user named; a run in it goes on.
        is_new: Begin another run even where an unfinished one has these very settings.
        is_strict: Stop at a damaged commit of settings instead of using another.
        processes: That train together.

    Raises:
        ConfigError: A setting is out of range, or the named folder holds a run with other settings.
        InputError: The named folder holds something else.
        DamagedError: A commit of settings is damaged and `is_strict`.
    """
    device = find_device(device_name)
    settings = settings_for(base, given, prompts, device, reporter, processes=processes)
    run = None if is_new else _unfinished_like(settings) if output is None else Run(output.resolve())
    if run is None or not run.is_begun:
        return Start(new_run(settings.base_name, output), settings, base, device, False)
    stored = _stored_settings(run, reporter, is_strict=is_strict)
    check_same(run, stored, settings, may_round=False)
    _warn_of_bits(stored, settings, reporter)
    return Start(run, settings, base, device, True)


def resume(
    name: str | None,
    base_name: str | None,
    given: dict[str, Any],
    prompts: list[str] | None,
    device_name: str,
    reporter: Reporter,
    *,
    is_strict: bool,
    processes: int = 1,
) -> Start:
    """The run of that name or folder, else the newest unfinished one, with its own settings and what is given.

    Arguments as in `begin`; "auto" is the kind of device that the run was begun on, where there is one.

    Raises:
        InputError: There is none, or its settings are lost.
        ConfigError: A setting is given that would make it another run.
        DamagedError: A commit of settings is damaged and `is_strict`.
    """
    run = newest_unfinished_run() if name is None else find_run(name)
    if run is None or not run.is_begun:
        raise InputError(
            f"{name!r} is no run that can be resumed", "give the folder of one, or its name among the runs"
        )
    with run.explain_stops():
        stored = _stored_settings(run, reporter, is_strict=is_strict)
        base = find_base(base_name or stored.source, reporter)
        device = _device_of(device_name, stored)
        settings = settings_for(base, given, prompts, device, reporter, stored, processes)
    check_same(run, stored, settings, may_round=True)
    _warn_of_bits(stored, settings, reporter)
    return Start(run, settings, base, device, True)


def check_same(run: Run, stored: Settings, wanted: Settings, *, may_round: bool) -> None:
    """Refuse to go on with a run under settings that would make it another.

    Args:
        run: The run.
        stored: Its settings.
        wanted: Those that it is to go on with.
        may_round: Whether that may take the run to a rounded base, or from one.

    Raises:
        ConfigError: A setting differs that may not, or fewer iterations are wanted than are done.
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
    """The newest unfinished run that the same command began."""
    for run in all_runs():
        if run.is_begun and not run.is_finished:
            with contextlib.suppress(InputError):  # a run without settings is no command's
                stored = read_settings(run)[0]
                is_as_long = stored.training.iterations == settings.training.iterations
                if is_as_long and not stored.differences(settings, may_round=False):
                    return run
    return None


def _stored_settings(run: Run, reporter: Reporter, *, is_strict: bool) -> Settings:
    stored, damage = read_settings(run)
    if damage and is_strict:
        raise damage[0]
    for error in damage:
        reporter.warn(f"{error.message}; using another commit's settings")
    return stored


def _device_of(name: str, stored: Settings) -> torch.device:
    if name == "auto":
        with contextlib.suppress(ConfigError):  # it is not here
            return find_device(stored.device)
    return find_device(name)


def _warn_of_bits(stored: Settings, settings: Settings, reporter: Reporter) -> None:
    if settings.machine != stored.machine:
        reporter.warn(f"the run was at work on {stored.machine}: on {settings.machine} it ends with other bits")


def _machine(device: torch.device, training: TrainConfig, processes: int) -> str:
    """The device in words, and what else the bits of training depend on."""
    ways = {
        "compiled": training.compile,
        "channels last": training.channels_last,
        "8-bit base": is_rounded(training.vram),
    }
    return ", ".join([describe_machine(device, processes), *(words for words, is_on in ways.items() if is_on)])


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


def _of(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    names = {field.name for field in dataclasses.fields(kind)}
    return {name: value for name, value in values.items() if name in names}

"""Trajectories, training, comparison: a base model to a few-step LoRA in a run folder."""

import time
from contextlib import closing
from dataclasses import dataclass

import torch

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.bases.device import be_deterministic, describe_machine, peak_memory_mib
from rapm_cli.core.common.errors import DiskError, DivergedError, InputError, RapmError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.config import to_json
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.storage.files import file_sha256, replace_file
from rapm_cli.core.training.distributed import ALONE, World
from rapm_cli.distill.callbacks import NO_CALLBACKS, CallbackOptions, Callbacks
from rapm_cli.distill.loop import Training, loaded_base, offload_unused, trainer_of
from rapm_cli.distill.memory_plan import adopt, install_oom_fallback, plan_for
from rapm_cli.distill.trajectories import collect_trajectories
from rapm_cli.evaluate.contact_sheet import draw_sheet
from rapm_cli.evaluate.demo_exam import Examination
from rapm_cli.evaluate.demo_scores import Part, to_record
from rapm_cli.evaluate.models import student, teacher_and_base
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.runs.checkpoints import Checkpoints
from rapm_cli.runs.lock import locked
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.retry import with_retries
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings

QUICK_METRICS = ["attributes", "pictures", "kd-demo"]  # a Fréchet distance wants ten times more pictures


@dataclass(frozen=True)
class Distilled:
    """What a distillation leaves.

    Args:
        run: Its folder.
        part: Comparison on held-out prompts; None where the base has no exam, or none was wanted.
        seconds: Seconds of each phase in this process, of training in all; "saving" is the part of it spent on commits.
        peak_mib: Most memory used.
        machine: The device in words, with the number of processes.
    """

    run: Run
    part: Part | None
    seconds: dict[str, float]
    peak_mib: float
    machine: str


def distill(
    run: Run,
    settings: Settings,
    base: Base,
    *,
    device: torch.device,
    is_strict: bool,
    reporter: Reporter,
    world: World = ALONE,
    callback_options: CallbackOptions = NO_CALLBACKS,
) -> Distilled:
    """Run a distillation, or go on with one, to its end.

    Args:
        run: A folder, new or begun with these settings.
        settings: What to do.
        base: The base model.
        device: Where to compute.
        is_strict: Stop at damaged data instead of using an older commit or making it again.
        reporter: Sees bars and talk.
        world: The processes that work on it, of which this is the first.
        callback_options: Trackers and previews to update during training.

    Raises:
        LockedError: Another process holds the run.
        Stopped: A signal came; what was done is kept.
    """
    try:
        remedy = "wait for it, or begin another run: --new, without --resume"
        with run.explain_stops(), locked(run.folder, reporter, remedy):
            if settings.deterministic:
                be_deterministic()
            _tell_damage(run, reporter)
            return _distill(run, settings, base, device, is_strict, world, callback_options, reporter)
    except DiskError as error:
        if run.is_begun:
            error.remedy = f"free space, and resume with: {run.resume_command}"
        raise
    except DivergedError as error:
        run.mark_diverged(error.message)
        raise


def _tell_damage(run: Run, reporter: Reporter) -> None:
    """Say where the LoRA of a finished run is made again because it is damaged."""
    if run.is_finished:
        try:
            run.verified_lora()
        except InputError as error:
            reporter.warn(f"{error.message}; it is made again from the last commit")


def _distill(
    run: Run,
    settings: Settings,
    base: Base,
    device: torch.device,
    is_strict: bool,
    world: World,
    callback_options: CallbackOptions,
    reporter: Reporter,
) -> Distilled:
    teacher, identity, clock = settings.teacher, settings.base_identity, _Clock()
    loaded = _load(run, settings, base, device, reporter)
    world.broadcast(settings.to_bytes())
    clock.lap("loading")
    warn_of_unread(loaded, list(settings.prompts), reporter)
    trajectories = collect_trajectories(
        loaded, settings, base.defaults.rollout_batch, is_strict=is_strict, world=world, reporter=reporter
    )
    clock.lap("trajectories")
    exam, others = None, teacher_and_base(loaded, teacher, identity)
    if settings.samples and base.set_exam:
        exam = Examination(
            base, loaded, settings.samples, teacher.seed, True, QUICK_METRICS, reporter, is_strict=is_strict
        )
        for contestant in others:  # before the LoRA is attached, so that the times are the bare network's
            exam.sit(contestant)
    clock.lap("teacher and base")
    callbacks = Callbacks(callback_options, run, settings, base, loaded, others[0], reporter)
    offload_unused(loaded, settings)
    plan = plan_for(base.architecture(reporter), settings, device, world.size, reporter, loaded.backbone)
    adopt(plan, loaded.backbone)
    trainer = trainer_of(loaded, settings, world)
    install_oom_fallback(plan, trainer, reporter)
    with closing(callbacks):
        training = Training(
            run, settings, trainer, trajectories, is_strict=is_strict, reporter=reporter, follow=callbacks.on_iteration
        )
        run.mark_unfinished()
        training.finish()
    lora = _settled(trainer, settings)
    size = sum(value.nbytes for value in lora.state.values())
    kept, remedy = "all iterations are saved", f"free space, and resume with: {run.resume_command}"
    with_retries(lambda: save_lora(run.lora, lora), run.lora, size, reporter, kept, remedy)
    clock.lap("training")
    clock.laps |= {"training": round(training.seconds, 2), "saving": round(training.saving_seconds, 2)}
    is_rounded = plan is not None and plan.is_quantised
    pupil = student(loaded, teacher, f"{identity} in 8 bits" if is_rounded else identity, lora)
    if exam:
        exam.sit(pupil)
    reporter.say("drawing the contact sheet")
    sheet = draw_sheet([*others, pupil], base, loaded, teacher.seed, list(settings.prompts))
    with_retries(lambda: replace_file(run.sheet, sheet), run.sheet, len(sheet), reporter, kept, remedy)
    part = exam.part() if exam else None
    clock.lap("student")
    made = Distilled(run, part, clock.laps, peak_memory_mib(device), describe_machine(device, world.size))
    record = {
        "iterations": settings.training.iterations,
        "samples": settings.samples,
        "lora_sha256": file_sha256(run.lora),
        "seconds": made.seconds,
        "peak_mib": made.peak_mib,
        "machine": made.machine,
        "comparison": to_record(part) if part else None,
    }
    with_retries(lambda: run.write_result(record), run.folder, 0, reporter, kept, remedy)
    return made


def _load(run: Run, settings: Settings, base: Base, device: torch.device, reporter: Reporter) -> LoadedBase:
    """Begin the run and load its base; a new run whose base cannot be loaded is gone again."""
    is_new, save, size = not run.is_begun, Checkpoints(run, settings).save_settings, len(settings.to_bytes())
    saved = "nothing was begun" if is_new else "all commits are kept"
    try:
        with_retries(save, run.checkpoints_dir, size, reporter, saved, "free space, and run the same command again")
        reporter.say(f"loading {base.name}")
        loaded = loaded_base(base, settings, device, reporter)
        loaded.load()
        return loaded
    except RapmError:
        if is_new:
            run.delete()
        raise


def _settled(trainer: Trainer, settings: Settings) -> LoraFile:
    """What training made; the network draws with it from here on."""
    trainer.finalize()
    sampler = sampler_of(to_json(settings.training))
    recipe = settings.recipe() | {"sampler": sampler.recipe(settings.teacher.num_slots)}
    return LoraFile(trainer.lora.state(), settings.training.rank, settings.training.alpha, recipe)


class _Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now

"""Distil a base model to a few-step LoRA in a run folder: trajectories, training, comparison."""

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.bases.device import be_deterministic, describe_machine, peak_memory_mib
from rapm_cli.bases.plans import is_rounded
from rapm_cli.core.common.errors import DiskError, DivergedError, InputError, RapmError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.config import to_json
from rapm_cli.core.method.trainer import Trainer
from rapm_cli.core.storage.files import file_sha256, replace_file
from rapm_cli.core.training.distributed import ALONE, World
from rapm_cli.distill.callbacks import Callbacks
from rapm_cli.distill.loop import Training
from rapm_cli.distill.prepare import loaded_base, prepare_trainer
from rapm_cli.distill.trajectories import collect_trajectories
from rapm_cli.distill.warm_start import warm_start
from rapm_cli.evaluate.comparison import Comparison
from rapm_cli.evaluate.contact_sheet import COLUMNS, fixed_scenes, make_sheet, sheet_rows
from rapm_cli.evaluate.evaluate import SplitResult
from rapm_cli.evaluate.models import EvalModel, student, teacher_and_base
from rapm_cli.evaluate.record import split_record
from rapm_cli.evaluate.verdict import verdict
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.runs.checkpoints import Checkpoints
from rapm_cli.runs.lock import locked
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.retry import with_retries
from rapm_cli.runs.run import Run
from rapm_cli.runs.settings import Settings


@dataclass(frozen=True)
class Distilled:
    """The result of a distillation.

    Args:
        run: The run folder.
        comparison: Comparison of teacher, base and student; None if it was left out.
        verdict: One sentence on the comparison; empty without one.
        seconds: Seconds of each phase in this process, but of training in all processes that resumed it. "saving" is
            the part of the training that was spent on checkpoints.
        peak_mib: Peak memory in MiB.
        machine: Name of the device, with the number of processes.
    """

    run: Run
    comparison: SplitResult | None
    verdict: str
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
) -> Distilled:
    """Run or resume a distillation to its end.

    Args:
        run: Run folder, new or begun with these settings.
        settings: Settings of the run.
        base: The base model.
        device: Device to compute on.
        is_strict: True to stop at damaged data, False to use an older checkpoint or to compute it again.
        reporter: Receives progress bars and messages.
        world: The processes that share the work; this is the first.

    Raises:
        LockedError: Another process holds the run.
        Stopped: A signal came; the finished work is kept.
    """
    try:
        remedy = "wait for it, or begin another run: --new, without --resume"
        with run.explain_stops(), locked(run.folder, reporter, remedy):
            if settings.deterministic:
                be_deterministic()
            _warn_of_damage(run, reporter)
            return _distill(run, settings, base, device, is_strict, world, reporter)
    except DiskError as error:
        if run.is_begun:
            error.remedy = error.then(f"resume with: {run.resume_command}")
        raise
    except DivergedError as error:
        run.mark_diverged(error.message)
        raise


def _warn_of_damage(run: Run, reporter: Reporter) -> None:
    """Warn if the LoRA of a finished run is damaged, because it is made again."""
    if run.is_finished:
        try:
            run.verified_lora()
        except InputError as error:
            reporter.warn(f"{error.message}; it is made again from the last checkpoint")


def _distill(
    run: Run,
    settings: Settings,
    base: Base,
    device: torch.device,
    is_strict: bool,
    world: World,
    reporter: Reporter,
) -> Distilled:
    clock = _Clock()
    loaded = _load(run, settings, base, device, reporter)
    world.broadcast(settings.to_bytes())
    clock.lap("loading")
    warn_of_unread(loaded, list(settings.prompts), reporter)
    trajectories = collect_trajectories(
        loaded, settings, base.defaults.rollout_batch, is_strict=is_strict, world=world, reporter=reporter
    )
    clock.lap("trajectories")
    samples = _Sampled(base, loaded, settings, reporter, is_strict=is_strict)
    clock.lap("teacher and base")
    callbacks = Callbacks(run, settings, base, loaded, samples.teacher, reporter)
    trainer = prepare_trainer(base, loaded, settings, world, reporter)
    with closing(callbacks):
        training = Training(
            run,
            settings,
            trainer,
            trajectories,
            is_strict=is_strict,
            reporter=reporter,
            follow=callbacks.on_iteration,
            begin=lambda fresh: warm_start(fresh, run, settings, reporter),
        )
        run.mark_unfinished()
        training.finish()
    lora = _finalized(trainer, settings)
    size = sum(value.nbytes for value in lora.state.values())
    _keep(run, reporter, run.lora, size, lambda: save_lora(run.lora, lora))
    clock.lap("training")
    clock.laps |= {"training": round(training.seconds, 2), "saving": round(training.saving_seconds, 2)}
    comparison, words, sheet = samples.finish(lora)
    _keep(run, reporter, run.sheet, len(sheet), lambda: replace_file(run.sheet, sheet))
    clock.lap("student")
    made = Distilled(run, comparison, words, clock.laps, peak_memory_mib(device), describe_machine(device, world.size))
    record = _record(made, settings)
    _keep(run, reporter, run.folder, 0, lambda: run.write_result(record))
    return made


def _keep(run: Run, reporter: Reporter, path: Path, size: int, write: Callable[[], object]) -> None:
    """Write a result of `size` bytes; while the disk is full, wait and try again."""
    with_retries(write, path, size, reporter, "all iterations are saved", f"resume with: {run.resume_command}")


def _record(made: Distilled, settings: Settings) -> dict[str, object]:
    """Return the result as JSON values."""
    return {
        "iterations": settings.training.iterations,
        "samples": settings.samples,
        "lora_sha256": file_sha256(made.run.lora),
        "seconds": made.seconds,
        "peak_mib": made.peak_mib,
        "machine": made.machine,
        "comparison": split_record(made.comparison) if made.comparison else None,
        "verdict": made.verdict,
    }


class _Sampled:
    """Teacher, base and student in the comparison and on the contact sheet.

    The teacher and the base are evaluated when this is made, and so before the base may be rounded.

    Args:
        base: The base model.
        loaded: The same base, loaded.
        settings: Settings of the run.
        reporter: Receives progress bars and messages.
        is_strict: True to stop at damaged data.
    """

    def __init__(
        self, base: Base, loaded: LoadedBase, settings: Settings, reporter: Reporter, *, is_strict: bool
    ) -> None:
        self._loaded, self._settings, self._reporter = loaded, settings, reporter
        self._models = teacher_and_base(loaded, settings.teacher, settings.base_identity)
        teacher, prompts = settings.teacher, settings.prompts
        self._comparison = Comparison(
            base,
            loaded,
            settings.samples,
            teacher.seed,
            prompts,
            reporter,
            is_strict=is_strict,
            size=teacher.shown_size,
        )
        self._comparison.add(self._models)
        self._scenes = fixed_scenes(base, loaded, teacher.seed, prompts, COLUMNS, teacher)
        self._size = base.defaults.image_batch
        self._rows = self._sheet_rows(self._models) if is_rounded(settings.training.vram) else {}

    @property
    def teacher(self) -> EvalModel:
        """The guided teacher."""
        return self._models[0]

    def finish(self, lora: LoraFile) -> tuple[SplitResult | None, str, bytes]:
        """Evaluate the student that the network carries; return the comparison, its verdict and the sheet as PNG."""
        settings, loaded = self._settings, self._loaded
        identity = settings.base_identity + (" in 8 bits" if loaded.backbone.is_rounded else "")
        trained = student(loaded, settings.teacher, identity, lora)
        self._comparison.add([trained])
        self._reporter.say("making the contact sheet")
        rows = (self._rows or self._sheet_rows(self._models)) | self._sheet_rows([trained])
        compared = self._comparison.result
        words = verdict(compared, is_renoised=lora.sampler.is_renoised)
        return compared, words, make_sheet(rows, self._scenes.prompts)

    def _sheet_rows(self, models: list[EvalModel]) -> dict[str, Sequence[Tensor]]:
        return sheet_rows(models, self._loaded, self._scenes, self._size)


def _load(run: Run, settings: Settings, base: Base, device: torch.device, reporter: Reporter) -> LoadedBase:
    """Begin the run and load its base; if the base of a new run cannot be loaded, remove the run again."""
    is_new, save, size = not run.is_begun, Checkpoints(run, settings).save_settings, len(settings.to_bytes())
    saved = "nothing was begun" if is_new else "all checkpoints are kept"
    try:
        with_retries(save, run.checkpoints_dir, size, reporter, saved, "run the same command again")
        reporter.say(f"loading {base.name}")
        loaded = loaded_base(base, settings, device, reporter)
        loaded.load()
        return loaded
    except RapmError:
        if is_new:
            run.delete()
        raise


def _finalized(trainer: Trainer, settings: Settings) -> LoraFile:
    """Return the trained LoRA, which the network uses from here on."""
    trainer.finalize()
    sampler = sampler_of(to_json(settings.training))
    how = sampler.recipe(settings.teacher.num_slots) | trainer.backbone.schedule.settings
    recipe = settings.recipe() | {"sampler": how}
    return LoraFile(trainer.lora.state(), settings.training.rank, settings.training.alpha, recipe).folded()


class _Clock:
    """A stopwatch for the seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now

"""A study: a table of distillations, every row with every seed; each run and each sample is made once."""

import contextlib
import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.bases.device import DTYPES, describe_machine
from rapm_cli.bases.plans import PLANS
from rapm_cli.core.common.errors import ConfigError, LockedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import MAX_GUIDANCE, TeacherConfig
from rapm_cli.core.method.samplers import SAMPLERS
from rapm_cli.distill.memory_plan import predicted_peak
from rapm_cli.distill.resolve_run import settings_for, settings_without_weights
from rapm_cli.evaluate.contact_sheet import COLUMNS, Scenes, fixed_scenes, sheet_row
from rapm_cli.evaluate.evaluate import ModelResult, evaluate_model
from rapm_cli.evaluate.models import EvalModel, few_steps, renoised, student, teacher_and_base
from rapm_cli.evaluate.plan import labelled_plan
from rapm_cli.formats.lora import apply_lora, load_lora
from rapm_cli.metrics import bootstrap_of
from rapm_cli.metrics.gap_closed import DISTANCE, FEWEST_SAMPLES
from rapm_cli.runs.settings import MAX_SAMPLES, MIN_SAMPLES, Settings
from rapm_cli.study.runs import finish, run_of, seconds_of

TUNING_SAMPLES = FEWEST_SAMPLES  # prompts that decide which setting is best; others than the table's


@dataclass(frozen=True)
class Variant:
    """One setting of a row.

    Args:
        options: Options of `rapm distill` that the row names itself, as in the file.
        given: All options of row and study, as `settings_for` takes them.
    """

    options: dict[str, Any]
    given: dict[str, Any]


@dataclass(frozen=True)
class Undistilled:
    """The undistilled base with few steps.

    Args:
        steps: Number of steps.
        guidance: Guidance scale; 1 means none.
        sampler: Name from `SAMPLERS`; only "ddim" allows guidance.
    """

    steps: int
    guidance: float = 1.0
    sampler: str = "ddim"

    def __post_init__(self) -> None:
        SAMPLERS[self.sampler].recipe(self.steps)
        if not 1 <= self.guidance <= MAX_GUIDANCE:
            raise ConfigError(f"guidance {self.guidance:g} is out of range", f"give 1 to {MAX_GUIDANCE}")
        if self.guidance != 1 and self.sampler != "ddim":
            raise ConfigError(f"sampler {self.sampler} takes no guidance", "leave one of the two out")


@dataclass(frozen=True)
class StudyRow:
    """One line of the table.

    Args:
        name: Name in the table.
        variants: Settings of the row; the best of several is shown. Empty for a row without training.
        undistilled: The undistilled base, for a row without training.
    """

    name: str
    variants: tuple[Variant, ...] = ()
    undistilled: Undistilled | None = None


@dataclass(frozen=True)
class Study:
    """A study as its file describes it.

    Args:
        title: Title of the table.
        source: Hashes that tell its file from others of the same name.
        base: The base model.
        samples: Number of labelled prompts.
        held_out: Whether training never sees their scenes.
        exam_seed: Seed of prompts and noise.
        seeds: Seeds of the distillations.
        given: Options of all rows, as `settings_for` takes them.
        rows: Rows of the table.
    """

    title: str
    source: dict[str, str]
    base: Base
    samples: int
    held_out: bool
    exam_seed: int
    seeds: tuple[int, ...]
    given: dict[str, Any]
    rows: tuple[StudyRow, ...]

    def __post_init__(self) -> None:
        if not MIN_SAMPLES <= self.samples <= MAX_SAMPLES:
            raise ConfigError(f"samples = {self.samples} is out of range", f"give {MIN_SAMPLES} to {MAX_SAMPLES}")
        if self.base.labelled_prompts is None:
            raise ConfigError(
                f"a study needs prompts with labels; base {self.base.name} has none", 'write base = "demo"'
            )


@dataclass
class Cells:
    """Results of a row.

    Args:
        row: The row as the file describes it.
        settings: Settings of the runs that are shown, one for each seed.
        chosen: The variant that is shown; None if nothing is distilled, or if no variant has a value.
        results: Result for each seed; None if there is no LoRA.
        failures: Reason for a missing LoRA, by seed.
        peak_bytes: Peak memory of training without data, with all activations kept; 0 if nothing is trained.
        tried: Result of each variant, if there are several.
    """

    row: StudyRow
    settings: list[Settings] = field(default_factory=list)
    chosen: Variant | None = None
    results: list[ModelResult | None] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    peak_bytes: int = 0
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """Reason for missing values; empty if there are values."""
        return next(iter(self.failures.values()), "")


@dataclass(frozen=True)
class Outcome:
    """Result of a study.

    Args:
        study: The study as its file describes it.
        teacher: Result of the teacher.
        base: Result of the undistilled base.
        rows: Results of the rows.
        machine: Description of the device.
        work_seconds: Seconds for all runs and samples, including those that were there before.
    """

    study: Study
    teacher: ModelResult
    base: ModelResult
    rows: list[Cells]
    machine: str
    work_seconds: float


def run_study(study: Study, device: torch.device, command: str, reporter: Reporter) -> Outcome:
    """Run a study; runs and samples of this or another study are not made again.

    Several processes share the work. Each takes the runs that no other process has, and waits for the others at last.

    Args:
        study: The study.
        device: Device to compute on.
        command: Command that resumes the study.
        reporter: Reporter of progress.

    Raises:
        ConfigError: The options of a row are invalid; nothing was begun.
        RapmError: Something failed that would fail the other rows, too.
        Stopped: A signal came; finished work is kept.
    """
    return _Work(study, device, command, reporter).outcome()


class _PromptSet:
    """Labelled prompts for many models. Each model loads the base for itself, so that training has the memory.

    Args:
        base: Base with labelled prompts.
        identity: Identity of its weights.
        device: Device to compute on.
        samples: Number of prompts.
        seed: Seed of prompts and noise.
        held_out: Whether training never sees their scenes.
        reporter: Reporter of progress.
    """

    def __init__(
        self,
        base: Base,
        identity: str,
        device: torch.device,
        samples: int,
        seed: int,
        held_out: bool,
        reporter: Reporter,
    ) -> None:
        self._base, self._identity, self._device, self._reporter = base, identity, device, reporter
        self.plan = labelled_plan(base, samples, seed, held_out, reporter)
        self._scenes: Scenes | None = None

    def teacher_and_base(self, config: TeacherConfig) -> list[ModelResult]:
        """Return the results of the teacher, and of the undistilled base with the student's steps; with images."""
        loaded = self._load(config)
        return [
            self._result(loaded, model, with_images=True) for model in teacher_and_base(loaded, config, self._identity)
        ]

    def few_steps(self, config: TeacherConfig, given: Undistilled) -> ModelResult:
        """Return the result of the undistilled base with few steps; with images."""
        loaded, sampler = self._load(config), SAMPLERS[given.sampler]
        about = (loaded, config, self._identity, given.steps)
        model = renoised(*about, sampler) if sampler.is_renoised else few_steps(*about, given.guidance)
        return self._result(loaded, model, with_images=True)

    def student(self, config: TeacherConfig, path: Path, *, with_images: bool = False) -> ModelResult:
        """Return the result of a LoRA file.

        Args:
            config: Settings of its teacher.
            path: Path of the file.
            with_images: Whether to add images for the contact sheet.
        """
        loaded, lora = self._load(config), load_lora(path)
        apply_lora(loaded.backbone, lora, path)
        return self._result(loaded, student(loaded, config, self._identity, lora), with_images=with_images)

    def _result(self, loaded: LoadedBase, model: EvalModel, *, with_images: bool) -> ModelResult:
        result = evaluate_model(model, self.plan, [], loaded, self._reporter)
        if not with_images:
            return result
        self._scenes = self._scenes or fixed_scenes(self._base, loaded, self.plan.seed, [], COLUMNS)
        images = sheet_row(model, loaded, self._scenes, self._base.defaults.image_batch)
        return dataclasses.replace(result, images=images, shown=tuple(self._scenes.prompts))

    def _load(self, config: TeacherConfig) -> LoadedBase:
        return LoadedBase(self._base.locate(self._reporter), self._device, DTYPES[config.precision])


class _Work:
    def __init__(self, study: Study, device: torch.device, command: str, reporter: Reporter) -> None:
        self.study, self.device, self.command, self.reporter = study, device, command, reporter
        self.settings = self._settled(study.given, study.seeds[0])  # its teacher and base are those of all rows
        for row in study.rows:
            try:
                for variant in row.variants:
                    own = variant.given | {"seed": study.seeds[0], "samples": 0}
                    settings_without_weights(study.base, own, None, device, reporter)
            except ConfigError as error:
                raise ConfigError(f"row {row.name!r}: {error.message}", error.remedy) from error
        about = (study.base, self.settings.base_identity, device)
        self.prompts = _PromptSet(*about, study.samples, study.exam_seed, study.held_out, reporter)
        self.tuning = _PromptSet(*about, TUNING_SAMPLES, study.exam_seed + 1, study.held_out, reporter)
        self.seconds: dict[str, float] = {}  # of every run and every model's samples, each counted once

    def outcome(self) -> Outcome:
        study = self.study
        self.reporter.say(f"{study.title!r}: {self._extent()}")
        self.reporter.say("teacher and base")
        teacher, base = self.prompts.teacher_and_base(self.settings.teacher)
        self.seconds |= {"teacher": teacher.seconds * study.samples, "base": base.seconds * study.samples}
        rows, is_patient = dict[int, Cells](), False
        while len(rows) < len(study.rows):
            before = len(self.seconds)
            for count in range(len(study.rows)):
                if count not in rows:
                    with contextlib.suppress(LockedError):
                        rows[count] = self._row(count + 1, study.rows[count], is_patient)
            is_patient = len(self.seconds) == before
        in_order = [rows[count] for count in range(len(rows))]
        return Outcome(study, teacher, base, in_order, describe_machine(self.device), sum(self.seconds.values()))

    def _extent(self) -> str:
        """Return a sentence on the work of the study, and on the part that is done."""
        count, are_done = 0, []
        for row in self.study.rows:
            tuned = [max(self.study.seeds) + 1] if len(row.variants) > 1 else []
            count += (len(self.study.seeds) if row.variants else 0) + len(tuned) * len(row.variants)
            for variant in row.variants:
                settings = [self._settled(variant.given, seed) for seed in (*self.study.seeds, *tuned)]
                are_done += [run_of(one).is_complete(one.training.iterations, one.samples) for one in settings]
        return f"{len(self.study.rows)} rows, {count} distillations, {sum(are_done)} of them finished before"

    def _row(self, count: int, row: StudyRow, is_patient: bool) -> Cells:
        """Return the results of a row.

        Raises:
            LockedError: Another process works on one of its runs; the others are finished.
        """
        study, cells, place = self.study, Cells(row), f"row {count} of {len(self.study.rows)}"
        if row.undistilled:
            self.reporter.say(f"{place}: {row.name}")
            result = self.prompts.few_steps(self.settings.teacher, row.undistilled)
            self.seconds[row.name] = result.seconds * study.samples
            cells.results = [result]
            return cells
        cells.chosen = self._best(cells, place, is_patient) if len(row.variants) > 1 else row.variants[0]
        if cells.chosen is None:
            cells.failures[study.seeds[0]] = str(cells.tried[0]["failure"]) or f"failed: no {DISTANCE} is a number"
            return cells
        cells.settings = [self._settled(cells.chosen.given, seed) for seed in study.seeds]
        cells.peak_bytes = predicted_peak(study.base.architecture(self.reporter), cells.settings[0], PLANS["24"])
        named = {f"{place}, seed {seed}": settings for seed, settings in zip(study.seeds, cells.settings, strict=True)}
        failures = self._finish(named, row.name, is_patient)
        for seed, settings, failure in zip(study.seeds, cells.settings, failures, strict=True):
            if failure:
                cells.failures[seed] = failure
                self.reporter.warn(f"{row.name}, seed {seed}: {failure}")
            is_first = not any(cells.results)
            cells.results.append(None if failure else self._student(self.prompts, settings, with_images=is_first))
        return cells

    def _best(self, cells: Cells, place: str, is_patient: bool) -> Variant | None:
        """Return the best variant with another seed and other prompts than the table's; None if all failed.

        Raises:
            LockedError: Another process works on one of the runs.
        """
        best: tuple[float, Variant] | None = None
        seed, named = max(self.study.seeds) + 1, {}
        for variant in cells.row.variants:
            words = ", ".join(f"{name} {value}" for name, value in variant.options.items())
            named[f"{place}, trying {words}"] = self._settled(variant.given, seed)
        failures = self._finish(named, cells.row.name, is_patient)
        for variant, settings, failure in zip(cells.row.variants, named.values(), failures, strict=True):
            value = None
            if not failure:
                labelled = self._student(self.tuning, settings).evidence.labelled
                assert labelled is not None
                value = bootstrap_of(DISTANCE).statistic(labelled)
                if math.isfinite(value) and (best is None or value < best[0]):
                    best = value, variant
            run = run_of(settings).folder.name
            cells.tried.append({"options": variant.options, "run": run, DISTANCE: value, "failure": failure})
        if best:
            self._warn_of_ends(cells.row, best[1], place)
        return best[1] if best else None

    def _warn_of_ends(self, row: StudyRow, best: Variant, place: str) -> None:
        """Warn if the best of some numbers is the lowest or the highest: a better one may lie beyond."""
        for name, value in best.options.items():
            tried = sorted({variant.options[name] for variant in row.variants if type(value) in (int, float)})
            if len(tried) > 2 and value in (tried[0], tried[-1]):
                self.reporter.warn(f"{place}: {name} {value} is best, at the end of what was tried: {row.name}")

    def _finish(self, named: dict[str, Settings], name: str, is_patient: bool) -> list[str]:
        """Finish some runs of a row; return the reason for each missing LoRA, empty if there is one.

        Raises:
            LockedError: Another process works on one of the runs; the others are finished.
        """
        failures, busy, common = [], None, (self.study.base, self.device, self.command, self.reporter)
        for place, settings in named.items():
            self.reporter.say(f"{place}: {name}")
            try:
                failures.append(finish(settings, *common, is_patient=is_patient))
            except LockedError as error:
                busy = error
                continue
            run = run_of(settings)
            spent = {
                phase: seconds for phase, seconds in seconds_of(run).items() if phase != "saving"
            }  # part of training
            self.seconds[run.folder.name] = float(sum(spent.values()))
        if busy:
            raise busy
        return failures

    def _student(self, prompts: _PromptSet, settings: Settings, *, with_images: bool = False) -> ModelResult:
        run, plan = run_of(settings), prompts.plan
        result = prompts.student(settings.teacher, run.lora, with_images=with_images)
        self.seconds[f"{run.folder.name} with prompts of seed {plan.seed}"] = result.seconds * len(plan.prompts)
        return result

    def _settled(self, given: dict[str, Any], seed: int) -> Settings:
        own = given | {"seed": seed, "samples": 0}
        return settings_for(self.study.base, own, None, self.device, self.reporter)

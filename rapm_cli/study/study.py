"""A table of distillations: every row with every seed, each run and each picture made once, and what came of it."""

import contextlib
import math
from dataclasses import dataclass, field
from typing import Any

import torch

from rapm_cli.bases import Base
from rapm_cli.bases.device import describe_machine
from rapm_cli.bases.plans import PLANS
from rapm_cli.core.common.errors import ConfigError, LockedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import MAX_GUIDANCE
from rapm_cli.core.method.samplers import SAMPLERS
from rapm_cli.distill.memory_plan import predicted_peak
from rapm_cli.distill.resolve_run import settings_for, settings_without_weights
from rapm_cli.evaluate.demo_scores import MIN_FRECHET
from rapm_cli.metrics.registry import METRICS
from rapm_cli.runs.settings import MAX_SAMPLES, MIN_SAMPLES, Settings
from rapm_cli.study.exam import Sat, StudyExam
from rapm_cli.study.runs import finish, run_of, seconds_of

TUNING_SAMPLES = MIN_FRECHET  # prompts that tell which setting is best; of another exam than the table's
JUDGE = "fd-demo"


@dataclass(frozen=True)
class Variant:
    """One way to set a row.

    Args:
        options: Those of `rapm distill` that the row names itself, as the file has them.
        given: All options of row and study, as `settings_for` takes them.
    """

    options: dict[str, Any]
    given: dict[str, Any]


@dataclass(frozen=True)
class Bare:
    """The network that nothing was distilled into, at few steps.

    Args:
        steps: That it takes.
        guidance: Guidance scale; 1 is none.
        sampler: Name from `SAMPLERS`; only "ddim" goes with guidance.
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
        name: As in the table.
        variants: How it is set; of several the best is shown. Empty for a row that distils nothing.
        bare: How the network without a LoRA draws, for such a row.
    """

    name: str
    variants: tuple[Variant, ...] = ()
    bare: Bare | None = None


@dataclass(frozen=True)
class Study:
    """A study as its file describes it.

    Args:
        title: Of the table.
        source: Hashes that tell its file from others of the same name.
        base: The base model.
        samples: Prompts of the exam.
        held_out: Whether no training saw their scenes.
        exam_seed: Which prompts and noise.
        seeds: Of each distillation.
        given: Options of all rows, as `settings_for` takes them.
        rows: The table.
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
        if self.base.set_exam is None:
            raise ConfigError(f"there is no exam for base {self.base.name}, which a study needs", 'write base = "demo"')


@dataclass
class Cells:
    """What a row has come to.

    Args:
        row: As the file describes it.
        settings: Of the runs that are shown, one for each seed.
        chosen: The way that it is set; None where nothing is distilled, or no way could be judged.
        sat: The exam of each seed; None where there is no LoRA.
        failures: Why there is none, by seed.
        peak_bytes: That training holds at once, counted without data, all activations kept; 0 where nothing is trained.
        tried: What was found of each way to set it, where there are several.
    """

    row: StudyRow
    settings: list[Settings] = field(default_factory=list)
    chosen: Variant | None = None
    sat: list[Sat | None] = field(default_factory=list)
    failures: dict[int, str] = field(default_factory=dict)
    peak_bytes: int = 0
    tried: list[dict[str, Any]] = field(default_factory=list)

    @property
    def failure(self) -> str:
        """Why it has no scores; empty where it has."""
        return next(iter(self.failures.values()), "")


@dataclass(frozen=True)
class Outcome:
    """All that a study has found.

    Args:
        study: As its file describes it.
        teacher: The teacher's exam.
        base: The bare base's.
        rows: What each has come to.
        machine: The device in words.
        work_seconds: Of all runs and pictures, also those that were there before.
    """

    study: Study
    teacher: Sat
    base: Sat
    rows: list[Cells]
    machine: str
    work_seconds: float


def run_study(study: Study, device: torch.device, command: str, reporter: Reporter) -> Outcome:
    """Work through a study; what was done before, by this or another study, is not done again.

    Several processes share the work of one: each takes the runs that no other is at, and at last waits for theirs.

    Args:
        study: The table.
        device: Where to compute.
        command: What to type to go on with it.
        reporter: Sees bars and talk.

    Raises:
        ConfigError: A row cannot be set so; nothing was begun.
        RapmError: Something failed that would fail the other rows, too.
        Stopped: A signal came; what was done is kept.
    """
    return _Work(study, device, command, reporter).outcome()


class _Work:
    def __init__(self, study: Study, device: torch.device, command: str, reporter: Reporter) -> None:
        self.study, self.device, self.command, self.reporter = study, device, command, reporter
        self.settings = self._settled(study.given, study.seeds[0])  # whose teacher and base all are compared with
        for row in study.rows:
            try:
                for variant in row.variants:
                    own = variant.given | {"seed": study.seeds[0], "samples": 0}
                    settings_without_weights(study.base, own, None, device, reporter)
            except ConfigError as error:
                raise ConfigError(f"row {row.name!r}: {error.message}", error.remedy) from error
        about = (study.base, self.settings.base_identity, device)
        self.exam = StudyExam(*about, study.samples, study.exam_seed, study.held_out, reporter)
        self.tuning = StudyExam(*about, TUNING_SAMPLES, study.exam_seed + 1, study.held_out, reporter)
        self.seconds: dict[str, float] = {}  # of every run and every contestant's pictures, each counted once

    def outcome(self) -> Outcome:
        study = self.study
        self.reporter.say(f"{study.title!r}: {self._extent()}")
        self.reporter.say("teacher and base")
        teacher, base = self.exam.undistilled(self.settings.teacher)
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
        """How much there is to do, and how much of it is done."""
        count, are_done = 0, []
        for row in self.study.rows:
            tuned = [max(self.study.seeds) + 1] if len(row.variants) > 1 else []
            count += (len(self.study.seeds) if row.variants else 0) + len(tuned) * len(row.variants)
            for variant in row.variants:
                settings = [self._settled(variant.given, seed) for seed in (*self.study.seeds, *tuned)]
                are_done += [run_of(one).is_complete(one.training.iterations, one.samples) for one in settings]
        return f"{len(self.study.rows)} rows, {count} distillations, {sum(are_done)} of them finished before"

    def _row(self, count: int, row: StudyRow, is_patient: bool) -> Cells:
        """What a row comes to.

        Raises:
            LockedError: Another process works on one of its runs; the others are finished.
        """
        study, cells, place = self.study, Cells(row), f"row {count} of {len(self.study.rows)}"
        if row.bare:
            self.reporter.say(f"{place}: {row.name}")
            sat = self.exam.bare(self.settings.teacher, row.bare.steps, row.bare.guidance, row.bare.sampler)
            self.seconds[row.name] = sat.seconds * study.samples
            cells.sat = [sat]
            return cells
        cells.chosen = self._best(cells, place, is_patient) if len(row.variants) > 1 else row.variants[0]
        if cells.chosen is None:
            cells.failures[study.seeds[0]] = str(cells.tried[0]["failure"]) or f"failed: no {JUDGE} is a number"
            return cells
        cells.settings = [self._settled(cells.chosen.given, seed) for seed in study.seeds]
        cells.peak_bytes = predicted_peak(study.base.architecture(self.reporter), cells.settings[0], PLANS["24"])
        named = {f"{place}, seed {seed}": settings for seed, settings in zip(study.seeds, cells.settings, strict=True)}
        failures = self._finish(named, row.name, is_patient)
        for seed, settings, failure in zip(study.seeds, cells.settings, failures, strict=True):
            if failure:
                cells.failures[seed] = failure
                self.reporter.warn(f"{row.name}, seed {seed}: {failure}")
            cells.sat.append(None if failure else self._sit(self.exam, settings, is_drawn=not any(cells.sat)))
        return cells

    def _best(self, cells: Cells, place: str, is_patient: bool) -> Variant | None:
        """The variant that is best with another seed and on other prompts than the table's; None where all failed.

        Raises:
            LockedError: Another process works on one of them.
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
                value = METRICS[JUDGE].compute(self._sit(self.tuning, settings).readings)
                if math.isfinite(value) and (best is None or value < best[0]):
                    best = value, variant
            run = run_of(settings).folder.name
            cells.tried.append({"options": variant.options, "run": run, JUDGE: value, "failure": failure})
        if best:
            self._warn_of_ends(cells.row, best[1], place)
        return best[1] if best else None

    def _warn_of_ends(self, row: StudyRow, best: Variant, place: str) -> None:
        """Where the best of some numbers is the least or the greatest, a better one may lie beyond."""
        for name, value in best.options.items():
            tried = sorted({variant.options[name] for variant in row.variants if type(value) in (int, float)})
            if len(tried) > 2 and value in (tried[0], tried[-1]):
                self.reporter.warn(f"{place}: {name} {value} is best, at the end of what was tried: {row.name}")

    def _finish(self, named: dict[str, Settings], name: str, is_patient: bool) -> list[str]:
        """Finish some runs of a row; why each has no LoRA, empty where it has one.

        Raises:
            LockedError: Another process works on one of them; the others are finished.
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
            spent = {phase: seconds for phase, seconds in seconds_of(run).items() if phase != "saving"}  # in training
            self.seconds[run.folder.name] = float(sum(spent.values()))
        if busy:
            raise busy
        return failures

    def _sit(self, exam: StudyExam, settings: Settings, *, is_drawn: bool = False) -> Sat:
        run = run_of(settings)
        sat = exam.student(settings.teacher, run.lora, is_drawn=is_drawn)
        self.seconds[f"{run.folder.name} in exam {exam.seed}"] = sat.seconds * exam.samples
        return sat

    def _settled(self, given: dict[str, Any], seed: int) -> Settings:
        own = given | {"seed": seed, "samples": 0}
        return settings_for(self.study.base, own, None, self.device, self.reporter)

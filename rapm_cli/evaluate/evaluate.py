"""The evaluation engine: every model samples each prompt once, and every metric is computed from those samples."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.config import TeacherConfig, from_json
from rapm_cli.evaluate import models
from rapm_cli.evaluate.features import gather, reference_statistics
from rapm_cli.evaluate.models import BASE, CONTROL, STUDENT, TEACHER, EvalModel, teacher_and_base
from rapm_cli.evaluate.plan import SamplePlan
from rapm_cli.evaluate.request import Protocol, Request
from rapm_cli.evaluate.samples import SampleSet
from rapm_cli.extractors.statistics import Statistics
from rapm_cli.formats.lora import apply_lora
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.gap_closed import DISTANCE, gap_closed
from rapm_cli.metrics.metric import Estimate, Evidence
from rapm_cli.metrics.paired import Difference, paired_difference
from rapm_cli.runs.launcher import world_size
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.resolve_lora import ResolvedLora


@dataclass(frozen=True)
class ModelResult:
    """Result of one model in one split.

    Args:
        samples: Its samples.
        metrics: Values by metric, as far as the evidence suffices.
        evidence: Evidence that the values were computed from.
        images: B images (3, H, W) in [0, 1] for a contact sheet; None if there is no sheet.
        shown: B prompts of these images.
    """

    samples: SampleSet
    metrics: dict[str, Estimate]
    evidence: Evidence
    images: Sequence[Tensor] | None = None
    shown: tuple[str, ...] = ()

    @property
    def model(self) -> EvalModel:
        """The model."""
        return self.samples.model

    @cached_property
    def seconds(self) -> float:
        """Seconds for one image."""
        return self.samples.seconds()


@dataclass(frozen=True)
class SplitResult:
    """Result of one split.

    Args:
        plan: Prompts and noise.
        rows: Results of the teacher, the undistilled base and the students, as far as they have samples.
        controls: Results of the teacher's samples with other noise, if there are some: what no difference looks like.
    """

    plan: SamplePlan
    rows: list[ModelResult]
    controls: Sequence[ModelResult] = ()

    @cached_property
    def gap_closed(self) -> Estimate | None:
        """Share of the distance from base to teacher that the first student closes; None if it is unknown."""
        found = {row.model.role: row.evidence.labelled for row in reversed(self.rows) if DISTANCE in row.metrics}
        teacher, base, student = (found.get(role) for role in (TEACHER, BASE, STUDENT))
        return gap_closed(teacher, base, student) if teacher and base and student else None


@dataclass(frozen=True)
class EvalResult:
    """Result of an evaluation.

    Args:
        request: Request of the evaluation.
        splits: Results of the splits; without labels there is one.
        extractors: Identities of the extractors, by name.
        references: Statistics of the reference images, by extractor.
        differences: Differences of the first student less the second, by metric.
        teacher: Text that identifies the teacher's samples: weights, settings, precision.
    """

    request: Request
    splits: list[SplitResult]
    extractors: dict[str, str]
    references: dict[str, Statistics] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    teacher: str = ""

    @property
    def rows(self) -> list[ModelResult]:
        """Results of the models in the first split."""
        return self.splits[0].rows

    @property
    def students(self) -> list[ModelResult]:
        """Results of the students in the first split."""
        return [row for row in self.rows if row.model.role == STUDENT]

    @property
    def prompts_digest(self) -> str:
        """The sha256 of the prompts of all splits, one a line."""
        lines = "".join(f"{prompt}\n" for split in self.splits for prompt in split.plan.prompts)
        return hashlib.sha256(lines.encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Hash of everything but the students; results with the same fingerprint can be compared."""
        plan = self.splits[0].plan
        files = {name: (made.description, made.files) for name, made in self.references.items()}
        counts = [self.request.teacher_samples, self.request.other_samples]
        sampled = [plan.seed, plan.batch, *counts, self.teacher]
        key = [self.request.protocol.words, self.prompts_digest, sampled, self.extractors, files]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def evaluate(
    students: Sequence[ResolvedLora], request: Request, *, device: torch.device, precision: str, reporter: Reporter
) -> EvalResult:
    """Evaluate one student, or two students that are compared with each other.

    Args:
        students: LoRAs of one base and one teacher.
        request: Samples to make and metrics to compute.
        device: Device to compute on.
        precision: "auto", "fp32", "bf16" or "fp16".
        reporter: Reporter of progress.

    Raises:
        WeightsError: The weights of an extractor that the user asked for are missing; nothing has been sampled yet.
        InputError: The reference statistics were made in another way.
        Stopped: A signal came; all samples so far are kept.
    """
    request, references = reference_statistics(request, device, reporter)
    splits = sample_all(students, request, device=device, precision=precision, reporter=reporter)
    splits = [[*sets, *_controls(sets)] for sets in splits]
    evidence, identities = gather(request, splits, references, device, reporter)
    results = []
    for plan, sets, found in zip(request.plans, splits, evidence, strict=True):
        if plan.labels:
            reporter.say(f"scoring {plan.name}, with intervals")
        rows = [ModelResult(one, values(request.metrics, each), each) for one, each in zip(sets, found, strict=True)]
        is_control = [row.model.role == CONTROL for row in rows]
        results.append(SplitResult(plan, *(_where(rows, is_control, wanted) for wanted in (False, True))))
    differences = _differences(*results[0].rows[-2:]) if len(students) > 1 else {}
    teacher = _teacher(students[0], device, precision, reporter)
    return EvalResult(request, results, identities, references, differences, teacher)


def evaluate_model(
    model: EvalModel,
    plan: SamplePlan,
    metrics: Sequence[str],
    loaded: LoadedBase,
    reporter: Reporter,
    *,
    is_strict: bool = False,
    teacher: SampleSet | None = None,
) -> ModelResult:
    """Evaluate one model without reference images.

    Args:
        model: The model.
        plan: Prompts and noise.
        metrics: Names of metrics, as far as they need no reference images and no weights.
        loaded: Base of the model, with the LoRA attached if it is a student.
        reporter: Reporter of progress.
        is_strict: Whether damage to kept samples is an error; otherwise they are sampled again.
        teacher: The teacher's samples for the same plan, to compare the model with; None for no comparison.
    """
    samples = SampleSet(model, plan).sampled(loaded, reporter, is_strict=is_strict)
    request, sets = Request(protocol=Protocol(), plans=(plan,), metrics=metrics), [teacher] if teacher else []
    ((*_, evidence),), _ = gather(request, [[*sets, samples]], {}, torch.device("cpu"), reporter)
    return ModelResult(samples, values(metrics, evidence), evidence)


def sample_all(
    students: Sequence[ResolvedLora], request: Request, *, device: torch.device, precision: str, reporter: Reporter
) -> list[list[SampleSet]]:
    """Return the samples of every model for each split: the teacher, the undistilled base, then the students.

    Several processes share the work; arguments and errors are those of `evaluate`.
    """
    _require_one_teacher(students)
    first = students[0]
    config = replace(_teacher_config(first, request, reporter), precision=find_precision(precision, device))
    splits: list[list[SampleSet]] = [[] for _ in request.plans]
    for chosen in students:
        reporter.say(f"loading {chosen.base.name}")
        made = _sampled(chosen, request, config, device, reporter, is_first=chosen is first)
        splits = [[*sets, *more] for sets, more in zip(splits, made, strict=True)]
    return splits


def _teacher_config(chosen: ResolvedLora, request: Request, reporter: Reporter) -> TeacherConfig:
    """Return the settings of a LoRA's teacher; those that suit the base if its file does not say them."""
    base, recorded = chosen.base, chosen.lora.recipe.get("teacher")
    unknown = f"{chosen.lora_path} does not say which teacher it was distilled from"
    if recorded is None:
        reporter.warn(f"{unknown}: compared with {base.name}'s usual one")
    elif request.plans[0].labels:
        try:
            from_json(TeacherConfig, recorded)
        except InputError as error:
            raise InputError(unknown, "give a file that rapm distill or export wrote") from error
    return TeacherConfig(base=base.name, **chosen.teacher)


def _sampled(
    chosen: ResolvedLora,
    request: Request,
    config: TeacherConfig,
    device: torch.device,
    reporter: Reporter,
    *,
    is_first: bool,
) -> list[list[SampleSet]]:
    """Return a student's samples for each split, after those of teacher and base if it is the first student.

    The base is not in memory any more when this returns.
    """
    weights = chosen.base.locate(reporter)
    loaded = LoadedBase(weights, device, DTYPES[config.precision])
    if chosen.warning:
        reporter.warn(chosen.warning)
    if is_first and not request.plans[0].labels:
        warn_of_unread(loaded, list(request.plans[0].prompts), reporter)
    splits: list[list[SampleSet]] = [[] for _ in request.plans]
    if is_first:
        for plan, sets in zip(request.plans, splits, strict=True):
            of_others = plan if plan.labels else replace(plan, prompts=plan.prompts[: plan.positions])
            of_others = replace(of_others, images=min(plan.images, len(of_others.prompts)))
            for model in teacher_and_base(loaded, config, weights.identity) if of_others.prompts else ():
                sets.append(_samples(model, of_others, request, loaded, reporter))
    apply_lora(loaded.backbone, chosen.lora, chosen.lora_path)
    student = models.student(loaded, config, weights.identity, chosen.lora)
    for plan, sets in zip(request.plans, splits, strict=True):
        sets.append(_samples(student, plan, request, loaded, reporter))
    return splits


def _samples(model: EvalModel, plan: SamplePlan, request: Request, loaded: LoadedBase, reporter: Reporter) -> SampleSet:
    """Return a model's samples, with those of other noise if a metric wants them."""
    share = _share()
    made = SampleSet(model, plan).sampled(loaded, reporter, share=share)
    if not (request.other_samples and request.wants("wants_others")):
        return made
    other = SampleSet(model, plan.with_other_noise(request.other_samples))
    return replace(made, other=other.sampled(loaded, reporter, share=share))


def _controls(sets: Sequence[SampleSet]) -> list[SampleSet]:
    """Return the teacher's samples with other noise as a set of their own, if there are some."""
    others = [one.other for one in sets if one.model.role == TEACHER and one.other]
    return [replace(other, model=replace(other.model, role=CONTROL)) for other in others]


def _where(rows: Sequence[ModelResult], marks: Sequence[bool], wanted: bool) -> list[ModelResult]:
    return [row for row, mark in zip(rows, marks, strict=True) if mark == wanted]


def _teacher(chosen: ResolvedLora, device: torch.device, precision: str, reporter: Reporter) -> str:
    """Return the text that two students share if their distances to the teacher can be compared."""
    key = [chosen.base.locate(reporter).identity, chosen.teacher, find_precision(precision, device)]
    return json.dumps(key, sort_keys=True)


def _require_one_teacher(students: Sequence[ResolvedLora]) -> None:
    for other in students[1:]:
        if other.base.source != students[0].base.source:
            raise ConfigError(
                f"{other.lora_path} is of base {other.base.name}, {students[0].lora_path} of {students[0].base.name}",
                "compare students of one base",
            )
        if other.teacher != students[0].teacher:
            raise ConfigError(
                f"{other.lora_path} and {students[0].lora_path} have different teachers: {other.teacher} and "
                f"{students[0].teacher}",
                "compare students of one teacher",
            )


def _share() -> tuple[int, int]:
    """Return this process's number among those that torchrun started, and how many there are."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0, world_size()


def values(metrics: Sequence[str], evidence: Evidence) -> dict[str, Estimate]:
    """Return the values of those metrics that the evidence suffices for, by name."""
    return {name: METRICS[name].compute(evidence) for name in metrics if METRICS[name].is_computable(evidence)}


def _differences(first: ModelResult, second: ModelResult) -> dict[str, Difference]:
    """Return the differences, first less second, of the metrics that are means over prompts."""
    found = {}
    for name, value in first.metrics.items():
        ours, theirs = value.by_prompt, second.metrics[name].by_prompt
        if ours is not None and theirs is not None:
            found[name] = paired_difference(ours, theirs, generator_for("paired", name))
    return found

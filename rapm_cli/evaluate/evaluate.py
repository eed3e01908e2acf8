"""A student of the visible world in numbers: drawn once, looked at by every network that a metric asks for."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.common.errors import ConfigError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.method.config import TeacherConfig
from rapm_cli.evaluate.features import look
from rapm_cli.evaluate.models import student, teacher_and_base
from rapm_cli.evaluate.protocols import Protocol
from rapm_cli.evaluate.reference import Reference, statistics_of
from rapm_cli.evaluate.samples import Gallery, Plan
from rapm_cli.extractors import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.clip import open_pair
from rapm_cli.extractors.statistics import Statistics, require_same
from rapm_cli.formats.lora import apply_lora
from rapm_cli.metrics.frechet import Moments, RunningMoments
from rapm_cli.metrics.paired import Difference, paired_difference
from rapm_cli.metrics.pictures import CLIP, PICTURE_METRICS, Beside, Evidence, Figure, Real
from rapm_cli.runs.launcher import world_size
from rapm_cli.runs.prompts import warn_of_unread
from rapm_cli.runs.resolve_lora import ResolvedLora

STUDENT = "student"  # role of a contestant


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be found out.

    Args:
        protocol: How.
        prompts: As many as there are samples.
        metrics: Names from `PICTURE_METRICS`.
        reference: Real pictures, where a metric needs some.
        seed: Of the noise.
        batch: Prompts that are drawn together.
        beside: Of the first so many prompts, the teacher and the bare base are drawn too.
        inception: Path of Inception's weights, where the user named one.
    """

    protocol: Protocol
    prompts: Sequence[str]
    metrics: Sequence[str]
    reference: Reference | None
    seed: int
    batch: int
    beside: int
    inception: Path | None = None

    @property
    def plan(self) -> Plan:
        """What the student draws."""
        return Plan(self.prompts, self.seed, self.batch, self.protocol.preparation, self.protocol.rounding)

    @property
    def short_plan(self) -> Plan:
        """What everybody draws: whole batches of the same."""
        whole = -(-self.beside // self.batch) * self.batch if self.beside else 0
        return replace(self.plan, prompts=self.prompts[:whole])

    @property
    def extractors(self) -> list[str]:
        """Names of those that the metrics look through."""
        names = (PICTURE_METRICS[name].extractor for name in self.metrics)
        return list(dict.fromkeys(name for name in names if name))

    def wants(self, extractor: str, need: str) -> bool:
        """Whether a metric that looks through it has such a need."""
        asked = (PICTURE_METRICS[name] for name in self.metrics)
        return any(metric.extractor == extractor and getattr(metric, need) for metric in asked)


@dataclass(frozen=True)
class Assessed:
    """One contestant.

    Args:
        gallery: Its pictures.
        figures: By metric, those that can be computed of so many.
        seconds: Of each picture.
        beside: Its first pictures beside the teacher's.
    """

    gallery: Gallery
    figures: dict[str, Figure]
    seconds: float
    beside: Beside | None = None


@dataclass(frozen=True)
class Assessment:
    """What was found out.

    Args:
        request: What was asked.
        rows: The teacher and the bare base where they were drawn, then the students.
        extractors: Identities of the networks that looked, by name.
        real: Descriptions of what was compared with, by network.
        differences: What the first student has more than the second, by metric.
        teacher: What makes the teacher's pictures: weights, settings, precision, machine.
    """

    request: Request
    rows: list[Assessed]
    extractors: dict[str, str]
    real: dict[str, Statistics]
    differences: dict[str, Difference]
    teacher: str

    @property
    def students(self) -> list[Assessed]:
        """The rows of the students."""
        return [row for row in self.rows if row.gallery.contestant.role == STUDENT]

    @property
    def prompts_digest(self) -> str:
        """The sha256 of the prompts, one a line."""
        return hashlib.sha256("".join(f"{prompt}\n" for prompt in self.request.prompts).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """What two evaluations share whose figures can be compared: all but the students."""
        request = self.request
        files = {name: (made.description, made.files) for name, made in self.real.items()}
        drawn = [request.seed, request.batch, len(request.short_plan.prompts), self.teacher]
        key = [request.protocol.words, self.prompts_digest, drawn, self.extractors, files]
        return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]


def assess(
    students: Sequence[ResolvedLora], request: Request, *, device: torch.device, precision: str, reporter: Reporter
) -> Assessment:
    """Draw, look and compute.

    Args:
        students: One, or two that are compared with each other; of one base.
        request: What is to be found out.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        reporter: Sees bars and talk.

    Raises:
        WeightsError: A network's weights are missing; nothing has been drawn yet.
        InputError: The reference was made in another way.
        Stopped: A signal came; what was drawn is kept.
    """
    real = _reference(request, device, reporter)  # first, so that what is missing is told before hours of drawing
    galleries = draw_share(students, request, device=device, precision=precision, reporter=reporter)
    seen = [Seen({}, {}) for _ in galleries]
    identities, texts = {}, None
    for name in request.extractors:
        extractor, embedded = _open(name, request, device, reporter)
        identities[name] = extractor.identity
        texts = texts if embedded is None else embedded
        for found, gallery in zip(seen, galleries, strict=True):
            if len(gallery.plan.prompts) == len(request.prompts):
                _see(found, name, gallery, extractor, request, reporter)
    teacher = next((gallery for gallery in galleries if gallery.contestant.role == "teacher"), None)
    rows = []
    for found, gallery in zip(seen, galleries, strict=True):
        beside = _beside(gallery, teacher) if teacher and gallery is not teacher else None
        sides = {name: Real(made.moments, made.features) for name, made in real.items()}
        evidence = Evidence(found.moments, found.features, sides, texts, beside)
        rows.append(Assessed(gallery, _figures(request.metrics, evidence), gallery.seconds(), beside))
    differences = _differences(*rows[-2:]) if len(students) > 1 else {}
    return Assessment(request, rows, identities, real, differences, _teacher(students[0], device, precision, reporter))


@dataclass(frozen=True)
class Seen:
    """What networks see in one gallery, by their names: moments, and features where they are wanted."""

    moments: dict[str, Moments]
    features: dict[str, Tensor]


def _see(found: Seen, name: str, gallery: Gallery, extractor: Extractor, request: Request, reporter: Reporter) -> None:
    """Look once; memory grows with the pictures only where a metric wants all features."""
    running, kept = RunningMoments(extractor.width), []
    keep = request.wants(name, "wants_features") or request.wants(name, "wants_texts")
    for features in look(gallery, extractor, reporter):
        running.add(features)
        kept += [features] if keep else []
    if running.count > 1:
        found.moments[name] = running.result()
        if found.moments[name].is_singular and request.wants(name, "wants_moments"):
            reporter.warn(
                f"{running.count:,} pictures are fewer than {name}'s {extractor.width:,} features: FD is far off"
            )
    if keep:
        found.features[name] = torch.cat(kept)


def _reference(request: Request, device: torch.device, reporter: Reporter) -> dict[str, Statistics]:
    """By extractor, what it sees in the reference; every network is opened once."""
    found = {}
    for name in request.extractors:
        extractor, _ = _open(name, replace(request, prompts=[]), device, reporter)
        if request.reference and request.wants(name, "wants_moments") | request.wants(name, "wants_features"):
            found[name] = _statistics(request, name, extractor, reporter)
    return found


def _statistics(request: Request, name: str, extractor: Extractor, reporter: Reporter) -> Statistics:
    reference, preparation = request.reference, request.protocol.preparation
    assert reference is not None
    keep = request.wants(name, "wants_features")
    if reference.statistics is None:
        return statistics_of(reference, preparation, extractor, reporter, keep=keep)
    require_same(reference.statistics, extractor.identity, extractor.width, preparation.spec)
    return reference.statistics


def _open(name: str, request: Request, device: torch.device, reporter: Reporter) -> tuple[Extractor, Tensor | None]:
    """An extractor, and of CLIP the prompts' embeddings."""
    opening = Opening(device, reporter, request.inception, request.protocol.clip_model)
    if name != CLIP:
        return EXTRACTORS[name](opening), None
    extractor, reader = open_pair(opening, request.protocol.clip_prefix)
    extractor = extractor.after(request.protocol.clip_preparation)
    if cut := sum(map(reader.is_cut, request.prompts)):
        reporter.warn(f"CLIP does not read the end of {cut:,} of {len(request.prompts):,} prompts")
    return extractor, reader.features(list(request.prompts)) if request.prompts else None


def draw_share(
    students: Sequence[ResolvedLora], request: Request, *, device: torch.device, precision: str, reporter: Reporter
) -> list[Gallery]:
    """All galleries, drawn: of the first prompts the teacher's and the bare base's, then each student's.

    Of several processes each draws its share, and then what the others have not; arguments and errors as of `assess`.
    """
    _require_one_teacher(students)
    precision = find_precision(precision, device)
    config = TeacherConfig(base=students[0].base.name, precision=precision, **students[0].teacher)
    galleries: list[Gallery] = []
    for chosen in students:
        reporter.say(f"loading {chosen.base.name}")
        galleries += _drawn(chosen, request, config, device, reporter, is_first=not galleries)
    return galleries


def _drawn(
    chosen: ResolvedLora,
    request: Request,
    config: TeacherConfig,
    device: torch.device,
    reporter: Reporter,
    *,
    is_first: bool,
) -> list[Gallery]:
    """A student's gallery, after those of teacher and base where it is the first; the base is gone at the end."""
    weights, short = chosen.base.locate(reporter), request.short_plan
    loaded, walked = LoadedBase(weights, device, DTYPES[config.precision]), len(short.prompts)
    if warning := chosen.warning(weights):
        reporter.warn(warning)
    if is_first:
        warn_of_unread(loaded, list(request.prompts), reporter)
    others = teacher_and_base(loaded, config, weights.identity) if walked and is_first else []
    galleries = [Gallery(who, short, walked).drawn(loaded, reporter, share=_share()) for who in others]
    apply_lora(loaded.backbone, chosen.lora, chosen.lora_path)  # which the others must not have
    mine = Gallery(student(loaded, config, weights.identity, chosen.lora), request.plan, walked)
    return [*galleries, mine.drawn(loaded, reporter, share=_share())]


def _teacher(chosen: ResolvedLora, device: torch.device, precision: str, reporter: Reporter) -> str:
    """What two students must share whose distances to the teacher are compared."""
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
    """This process's number among those that torchrun started, and how many there are."""
    return int(os.environ.get("RANK", "0")) if world_size() > 1 else 0, world_size()


def _beside(gallery: Gallery, teacher: Gallery) -> Beside:
    """How far a contestant is from the teacher, on the prompts that both drew."""
    pictures, positions = [], []
    for chunk in teacher.plan.chunks:
        for k in chunk:
            off = gallery.picture(chunk, k).astype(np.float64) - teacher.picture(chunk, k)
            pictures.append(float(np.sqrt((off**2).mean())))
        off_edges = (gallery.positions(chunk) - teacher.positions(chunk))[:, :-1]  # the noise is the same
        positions.append(off_edges.square().mean(dim=(2, 3, 4)).sqrt())
    return Beside(torch.tensor(pictures, dtype=torch.float64), torch.cat(positions))


def _figures(metrics: Sequence[str], evidence: Evidence) -> dict[str, Figure]:
    """Those metrics that the evidence is enough for."""
    figures = {}
    for name in metrics:
        metric = PICTURE_METRICS[name]
        is_seen = metric.extractor is None or metric.extractor in {*evidence.moments, *evidence.features}
        if is_seen and (evidence.beside is not None or not metric.wants_teacher):
            figures[name] = metric.compute(evidence)
    return figures


def _differences(first: Assessed, second: Assessed) -> dict[str, Difference]:
    """What the first has more than the second, of the metrics that are means over prompts."""
    found = {}
    for name, figure in first.figures.items():
        ours, theirs = figure.by_prompt, second.figures[name].by_prompt
        if ours is not None and theirs is not None:
            found[name] = paired_difference(ours, theirs, generator_for("paired", name))
    return found

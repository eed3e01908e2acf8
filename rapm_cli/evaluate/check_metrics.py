"""A check of the metrics: the teacher's images are damaged in known ways, and every metric answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig
from rapm_cli.evaluate.damages import DAMAGES, Damage, collapsed, damaged, sources
from rapm_cli.evaluate.evaluate import values
from rapm_cli.evaluate.features import open_extractor, reference_statistics
from rapm_cli.evaluate.models import teacher_and_base
from rapm_cli.evaluate.plan import Labels
from rapm_cli.evaluate.record import Record, legend, value_column, value_record
from rapm_cli.evaluate.request import Request
from rapm_cli.evaluate.samples import SampleSet
from rapm_cli.extractors import Extractor
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.metric import (
    COLLAPSE,
    OTHER_PROMPT,
    Estimate,
    Evidence,
    ImageReader,
    LabelledSamples,
    ReferenceFeatures,
    TeacherDifference,
)
from rapm_cli.metrics.moments import moments
from rapm_cli.runs import signals
from rapm_cli.runs.resolve_lora import ResolvedLora

NONE = Damage("no damage", (0,), "")
CONTROL = Damage("other noise", (0,), "")  # the teacher's images with other noise in the place of its own
CHECKED = 128  # prompts of a check, by default
LITTLE = 0.01  # share of a metric's largest change that counts as none, however certain it is


@dataclass(frozen=True)
class Judges:
    """What metrics need beside images.

    Args:
        metrics: Names of the metrics.
        extractors: Extractors of kept images, by name.
        reference: Features of the reference images, by extractor.
        texts: CLIP embeddings of the prompts.
        labels: Labels of the prompts; None if they have none.
    """

    metrics: Sequence[str]
    extractors: Mapping[str, Extractor]
    reference: Mapping[str, ReferenceFeatures]
    texts: Tensor | None = None
    labels: Labels | None = None


@dataclass(frozen=True)
class Subject:
    """Samples to damage.

    Args:
        prompts: N prompts.
        images: N functions that read an image.
        others: N functions that read the image of other noise.
        positions: (N, E, C, h, w) latents at the slot edges; None if they are not known.
    """

    prompts: Sequence[str]
    images: Sequence[ImageReader]
    others: Sequence[ImageReader]
    positions: Tensor | None = None


@dataclass(frozen=True)
class Answer:
    """The metrics' answers to one amount of one damage.

    Args:
        damage: The damage.
        amount: Its amount.
        values: Values by metric.
    """

    damage: Damage
    amount: float
    values: Mapping[str, Estimate]

    @property
    def title(self) -> str:
        """The damage with its amount, in words."""
        return self.damage.title(self.amount) if self.amount else self.damage.name


def check_metrics(
    chosen: ResolvedLora, request: Request, *, device: torch.device, precision: str, reporter: Reporter
) -> list[Answer]:
    """Damage the teacher's samples of the first split, and return the answers of the request's metrics.

    Args:
        chosen: Base, and the settings of its teacher.
        request: Request whose every prompt the teacher samples, with other noise too.
        device: Device to sample on.
        precision: "auto", "fp32", "bf16" or "fp16".
        reporter: Reporter of progress.

    Raises:
        WeightsError: The weights of an extractor that the user asked for are missing.
        Stopped: A signal came; all samples so far are kept.
    """
    request, references = reference_statistics(request, device, reporter)
    plan = request.plans[0]
    config = TeacherConfig(base=chosen.base.name, **chosen.teacher, precision=find_precision(precision, device))
    weights = chosen.base.locate(reporter)
    loaded = LoadedBase(weights, device, DTYPES[config.precision])
    teacher = teacher_and_base(loaded, config, weights.identity)[0]
    samples, others = (
        SampleSet(teacher, each).sampled(loaded, reporter) for each in (plan, plan.with_other_noise(len(plan.prompts)))
    )
    subject = Subject(plan.prompts, _read(samples.readers()), _read(others.readers()), samples.positions())
    opened = {name: open_extractor(name, request, device, reporter) for name in request.extractors}
    texts = [reader.features(list(plan.prompts)) for _, reader in opened.values() if reader]
    judges = Judges(
        request.metrics,
        {name: extractor for name, (extractor, _) in opened.items()},
        {name: ReferenceFeatures(made.moments, made.features) for name, made in references.items()},
        next(iter(texts), None),
        plan.labels,
    )
    return answers(subject, judges, reporter, device)


def answers(subject: Subject, judges: Judges, reporter: Reporter, device: torch.device) -> list[Answer]:
    """Return the answers of every metric to no damage, to the samples of other noise, and to every damage."""
    asked = [(damage, amount) for damage in (NONE, CONTROL, *DAMAGES) for amount in damage.amounts]
    features = {name: torch.cat(list(one.features(subject.images))) for name, one in judges.extractors.items()}
    made = []
    with reporter.bar("damages", len(asked), "damage", device) as bar, signals.deferred("this damage"):
        for damage, amount in asked:
            evidence = _evidence(subject, judges, features, damage, amount)
            made.append(Answer(damage, amount, values(judges.metrics, evidence)))
            bar.advance(1, note=damage.name)
            signals.check("all samples so far are kept", "resume with: the same command")
    return made


def smallest_seen(name: str, damage: Damage, made: Sequence[Answer]) -> float | None:
    """Return the smallest amount of a damage from which on a metric sees it; None if it never does.

    It sees an amount if its answer is worse than without damage and not better than to a smaller amount, by more than
    `LITTLE`, and if its 95 % interval, where it has one, does not hold the answer without damage.
    """
    exact = next(one.values[name] for one in made if one.damage is NONE)

    def worse(value: Estimate) -> float:
        return METRICS[name].shortfall(value.value) - METRICS[name].shortfall(exact.value)

    least = LITTLE * max(worse(one.values[name]) for one in made if name in one.values)
    found, before, largest = None, False, 0.0
    for one in (one for one in made if one.damage is damage and name in one.values):
        value = one.values[name]
        is_seen = _is_outside(exact.value, value) and worse(value) > max(least, largest - least)
        if is_seen and not before:
            found = one.amount
        before, largest = is_seen, max(largest, worse(value))
    return found if before else None


def _is_outside(exact: float, value: Estimate) -> bool:
    """Return whether an answer differs from that without damage by more than its interval."""
    if value.low is None or value.high is None:
        return value.value != exact
    return not value.low <= exact <= value.high


def _evidence(
    subject: Subject, judges: Judges, teacher_features: Mapping[str, Tensor], damage: Damage, amount: float
) -> Evidence:
    count = len(subject.images)
    rows = sources(count, amount) if damage.name == OTHER_PROMPT else list(range(count))
    images, others = (damaged([side[k] for k in rows], damage, amount) for side in (subject.images, subject.others))
    if damage is CONTROL:
        images, others = others, images
    if damage.name == COLLAPSE:
        others = collapsed(images, others, amount)
    images = _read(images)
    found = {name: torch.cat(list(extractor.features(images))) for name, extractor in judges.extractors.items()}
    has_positions = subject.positions is not None and damage.change is None and damage is not CONTROL
    return Evidence(
        prompts=subject.prompts,
        images=images,
        moments={name: moments(each) for name, each in found.items() if name in judges.reference},
        features=found,
        reference=judges.reference,
        texts=judges.texts,
        labelled=_labelled(images, judges.labels, len(subject.prompts)) if judges.labels else None,
        teacher=_difference(images, subject, rows if has_positions else None),
        teacher_images=subject.images,
        others=others,
        teacher_others=subject.others,
        teacher_features=teacher_features,
        true_features={},
    )


def _read(images: Sequence[ImageReader]) -> list[ImageReader]:
    """Read images once, and return functions that return them; every metric asks for them again."""
    return [partial(np.asarray, read()) for read in images]


def _difference(images: Sequence[ImageReader], subject: Subject, rows: Sequence[int] | None) -> TeacherDifference:
    off = [
        float(np.sqrt(np.square(ours().astype(np.float64) - theirs()).mean()))
        for ours, theirs in zip(images, subject.images, strict=True)
    ]
    positions = None
    if rows is not None and subject.positions is not None:
        change = (subject.positions[list(rows)] - subject.positions)[:, :-1]  # without the noise
        positions = change.square().mean(dim=(2, 3, 4)).sqrt()
    return TeacherDifference(torch.tensor(off, dtype=torch.float64), positions)


def _labelled(images: Sequence[ImageReader], labels: Labels, count: int) -> LabelledSamples:
    """Return features and answers of the labels' reader for damaged images."""
    size, parts, reference = 32, [], []
    for start in range(0, count, size):
        chunk = range(start, min(start + size, count))
        pixels = torch.from_numpy(np.stack([images[k]() for k in chunk])).permute(0, 3, 1, 2).float() / 255
        parts.append(labels.read(chunk, pixels))
        reference.append(labels.reference(chunk))
    features, right = (torch.cat([part[name] for part in parts]) for name in ("features", "right"))
    return LabelledSamples(features, right, labels.known.asked[:count], torch.cat(reference))


def check_record(made: Sequence[Answer], request: Request, base: str, machine: str) -> Record:
    """Return a check as JSON values: every answer, and by metric the smallest amount of each damage that it sees."""
    names = [name for name in request.metrics if name in made[0].values]
    return {
        "base": base,
        "samples": len(request.plans[0].prompts),
        "seed": request.plans[0].seed,
        "machine": machine,
        "answers": [
            {
                "damage": one.damage.name,
                "amount": one.amount,
                "title": one.title,
                "metrics": {name: value_record(value, with_prompts=False) for name, value in one.values.items()},
            }
            for one in made
        ],
        "legend": legend(names),
        "smallest_seen": {name: {one.name: smallest_seen(name, one, made) for one in DAMAGES} for name in names},
    }


def check_tables(record: Record) -> list[tuple[str, list[str], list[list[str]]]]:
    """Return title, column titles and rows of two tables: every answer, and what each metric sees from which amount."""
    names, units = list(record["legend"]), {damage.name: damage.unit for damage in DAMAGES}
    columns = [value_column(name, name, METRICS[name].form, METRICS[name].unit, has_interval=False) for name in names]
    answered = [[one["title"], *(column.cell(one) for column in columns)] for one in record["answers"]]
    seen = [[name, *(_from_amount(record, name, damage, unit) for damage, unit in units.items())] for name in names]
    title = f"{record['samples']:,} prompts of {record['base']}, seed {record['seed']}"
    return [
        (f"Answers to the teacher's images, damaged; {title}", ["", *names], answered),
        ("The smallest amount that a metric sees; * it claims to see this damage", ["", *units], seen),
    ]


def _from_amount(record: Record, name: str, damage: str, unit: str) -> str:
    amount, is_claimed = record["smallest_seen"][name][damage], damage in record["legend"][name]["sees"]
    return ("-" if amount is None else f"{amount:g}{unit}") + ("*" if is_claimed else "")


def for_check(request: Request) -> Request:
    """Return a request for one split whose every prompt is kept with its latents and sampled with other noise."""
    plan = request.plans[0]
    count = len(plan.prompts)
    plan = replace(plan, images=count, positions=count)
    return replace(request, plans=(plan,), teacher_samples=count, other_samples=count)

"""The registry of metrics: what each metric needs, which direction is better, and how its value is computed.

To add a metric, write one file here that calls `METRICS.add`, and one line in `MODULES` of `metrics/__init__.py`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.metrics.bootstrap import NORMAL_95, bootstrap_interval
from rapm_cli.metrics.moments import Moments

INCEPTION, CLIP, CLIP_336, DINO, DEMO = "inception", "clip", "clip-336", "dinov2", "demo"  # names of extractors
FILTERS = "filters"  # likewise
BLUR, NOISE, COMPRESSION, CAST = "blur", "noise", "compression", "colour cast"  # damages that a metric can see
OTHER_PROMPT, COLLAPSE = "image of another prompt", "few seeds"  # likewise

ImageReader = Callable[[], NDArray[np.uint8]]  # returns (H, W, 3)


@dataclass(frozen=True)
class ReferenceFeatures:
    """Features of the reference images under one extractor.

    Args:
        moments: Mean and covariance of the features.
        features: (M, D) features of all images; None if only their moments are known.
    """

    moments: Moments
    features: Tensor | None = None


@dataclass(frozen=True)
class TeacherDifference:
    """Differences between a model and its teacher on K prompts with the same noise.

    Args:
        images: (K,) root mean square differences of the images, in grey levels of 255.
        positions: (K, N) root mean square differences of the latents at the slot edges; `[:, 0]` is the clean edge.
            None if no latents are known.
    """

    images: Tensor
    positions: Tensor | None = None


@dataclass(frozen=True)
class LabelledSamples:
    """Features and answers for N images whose prompts have labels.

    Args:
        features: (N, D) float32 features of the images.
        right: (N, A) bool, True if the image shows the prompt's attribute.
        asked: (N, A) bool, True if the prompt asks for the attribute.
        reference: (N, D) float32 features of true images of the same prompts.
    """

    features: Tensor
    right: Tensor
    asked: Tensor
    reference: Tensor

    def __getitem__(self, rows: Tensor) -> "LabelledSamples":
        return LabelledSamples(self.features[rows], self.right[rows], self.asked[rows], self.reference[rows])

    def __len__(self) -> int:
        return len(self.features)


@dataclass(frozen=True)
class Evidence:
    """All that is known about the N samples of one model.

    Args:
        prompts: N prompts. A prompt that repeats has other noise each time.
        images: N functions that read an image; empty unless a metric has `wants_images`.
        moments: Moments of the samples' features, by extractor.
        features: (N, D) features, by extractor; present only if a metric wants the features of every sample.
        reference: Features of the reference images, by extractor.
        texts: (N, D) CLIP embeddings of the prompts.
        labelled: Features and answers; None unless the prompts have labels.
        teacher: Differences from the teacher on the first K prompts; None if the teacher has no samples.
        teacher_images: K functions that read the teacher's images, like `images`.
        others: L functions that read the model's images for the first L prompts with other noise.
        teacher_others: L functions that read the teacher's images with that noise.
        teacher_features: (K, D) features of the teacher's images, by extractor.
        true_features: (N, D) features of true images of the prompts, by extractor.
    """

    prompts: Sequence[str] = ()
    images: Sequence[ImageReader] = ()
    moments: Mapping[str, Moments] = field(default_factory=dict)
    features: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Mapping[str, ReferenceFeatures] = field(default_factory=dict)
    texts: Tensor | None = None
    labelled: LabelledSamples | None = None
    teacher: TeacherDifference | None = None
    teacher_images: Sequence[ImageReader] = ()
    others: Sequence[ImageReader] = ()
    teacher_others: Sequence[ImageReader] = ()
    teacher_features: Mapping[str, Tensor] = field(default_factory=dict)
    true_features: Mapping[str, Tensor] = field(default_factory=dict)

    @cached_property
    def shared(self) -> dict[str, object]:
        """A place for results that several metrics share, by name."""
        return {}


@dataclass(frozen=True)
class Estimate:
    """A value with its uncertainty.

    Args:
        value: The value; over several seeds, their mean.
        low: Lower end of the 95 % interval; None if there is no interval.
        high: Upper end of the 95 % interval.
        spread: Standard deviation over subsets of images, or over seeds; None if there is none.
        by_prompt: (N,) or (K,) value for each prompt, if the metric is their mean.
        by_seed: Value for each seed, if there are several.
    """

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    by_prompt: Tensor | None = None
    by_seed: tuple[float, ...] = ()


@dataclass(frozen=True)
class Bootstrap:
    """The statistic of a metric on labelled prompts, and how to resample it.

    Args:
        statistic: Samples to the value.
        draws: Number of resamples.
        lowest: Lower bound of the values.
        highest: Upper bound of the values.
    """

    statistic: Callable[[LabelledSamples], float]
    draws: int = 200
    lowest: float = -math.inf
    highest: float = math.inf

    def estimate(self, name: str, samples: LabelledSamples) -> Estimate:
        """Return the statistic with its interval; `name` is the metric's name and seeds the resamples."""
        low, high = bootstrap_interval(
            lambda chosen: self.statistic(samples[chosen]),
            len(samples),
            generator_for("bootstrap", name),
            draws=self.draws,
        )
        return Estimate(self.statistic(samples), max(low, self.lowest), min(high, self.highest))


@dataclass(frozen=True)
class Metric:
    """A value computed from evidence, and what it needs.

    Args:
        title: Title of the table's column.
        is_higher_better: Whether a higher value is better.
        compute: Evidence to the value.
        target: Best value, if neither the highest nor the lowest is best.
        extractor: Name of the extractor whose features it compares; None if it compares images or latents.
        wants_moments: Whether it needs moments of reference images.
        wants_features: Whether it needs the features of every sample and of every reference image.
        wants_texts: Whether it needs embeddings of the prompts.
        wants_labels: Whether it needs prompts with labels.
        wants_images: Whether it needs the images themselves.
        wants_teacher: Whether it needs the teacher's samples for the same prompts and noise.
        wants_positions: Whether it needs the latents at the slot edges.
        wants_others: Whether it needs samples with other noise.
        wants_true: Whether it needs true images of the prompts.
        is_paired: Whether it takes each image beside the teacher's of the same noise. A student that adds new noise
            need not share the teacher's image.
        is_usual: Whether it is computed if the user names no metrics and the evidence suffices.
        form: Python's format of the value in tables.
        unit: "%" for shares, which are computed in [0, 1]; else empty.
        fewest: Least number of samples that it can be computed from.
        bootstrap: Statistic and resampling of a metric on labelled prompts; studies use it.
        sees: Damages that make the value worse; `rapm eval --check-metrics` and a test hold it to that.
        blind_to: What it does not see, as the end of a sentence that begins with "does not see".
    """

    title: str
    is_higher_better: bool
    compute: Callable[[Evidence], Estimate]
    extractor: str | None = None
    target: float | None = None
    wants_moments: bool = False
    wants_features: bool = False
    wants_texts: bool = False
    wants_labels: bool = False
    wants_images: bool = False
    wants_teacher: bool = False
    wants_positions: bool = False
    wants_others: bool = False
    wants_true: bool = False
    is_paired: bool = False
    is_usual: bool = False
    form: str = ".2f"
    unit: str = ""
    fewest: int = 1
    bootstrap: Bootstrap | None = None
    sees: tuple[str, ...] = ()
    blind_to: str = ""

    @property
    def column(self) -> str:
        """Title of the column with an arrow in the better direction."""
        return f"{self.title} {self.arrow}"

    @property
    def arrow(self) -> str:
        """Arrow in the better direction, or to the best value."""
        if self.target is not None:
            return f"→{self.target * 100:g}%" if self.unit else f"→{self.target:g}"
        return "↑" if self.is_higher_better else "↓"

    def shortfall(self, value: float) -> float:
        """Return a number that is lower for a better value: the distance from the best value, or the value itself."""
        if self.target is not None:
            return abs(value - self.target)
        return -value if self.is_higher_better else value

    def is_computable(self, evidence: Evidence) -> bool:
        """Return whether the evidence has everything that the metric needs of the samples."""
        if self.wants_labels:
            return evidence.labelled is not None
        has_positions = evidence.teacher is not None and evidence.teacher.positions is not None
        return all(
            is_there or not is_wanted
            for is_wanted, is_there in (
                (self.extractor, self.extractor in {*evidence.moments, *evidence.features}),
                (self.wants_images, evidence.images),
                (self.wants_teacher, evidence.teacher),
                (self.wants_teacher and self.extractor, self.extractor in evidence.teacher_features),
                (self.wants_positions, has_positions),
                (self.wants_others, evidence.others and evidence.teacher_others),
                (self.wants_true, self.extractor in evidence.true_features),
            )
        )


METRICS: Registry[Metric] = Registry("metric")


def add_labelled_metric(
    name: str,
    title: str,
    is_higher_better: bool,
    bootstrap: Bootstrap,
    *,
    extractor: str = DEMO,
    unit: str = "",
    form: str = ".3g",
    is_usual: bool = True,
    sees: tuple[str, ...],
    blind_to: str,
) -> None:
    """Register a metric on labelled prompts; its interval resamples the prompts.

    Args:
        name: Name of the metric.
        title: Title of its column.
        is_higher_better: Whether a higher value is better.
        bootstrap: Its statistic and resampling.
        extractor: Name of the extractor that answers for the labels.
        unit: "%" for shares; else empty.
        form: Python's format of the value.
        is_usual: Whether it is computed if the user names no metrics.
        sees: Damages that make the value worse.
        blind_to: What it does not see.
    """

    def compute(evidence: Evidence) -> Estimate:
        assert evidence.labelled is not None
        return bootstrap.estimate(name, evidence.labelled)

    METRICS.add(name)(
        Metric(
            title, is_higher_better, compute, extractor, wants_labels=True, is_usual=is_usual, form=form, unit=unit,
            bootstrap=bootstrap, sees=sees, blind_to=blind_to,
        )
    )  # fmt: skip


def bootstrap_of(name: str) -> Bootstrap:
    """Return the statistic and resampling of a metric on labelled prompts.

    Raises:
        ValueError: The metric needs no labels.
    """
    found = METRICS[name].bootstrap
    if found is None:
        raise ValueError(f"{name} has no bootstrap")
    return found


def mean_estimate(values: Tensor) -> Estimate:
    """Return the mean of (N,) values, one for each prompt, with the interval over other prompts."""
    mean = float(values.double().mean())
    if len(values) < 2:
        return Estimate(mean, by_prompt=values)
    margin = NORMAL_95 * float(values.double().std()) / len(values) ** 0.5
    return Estimate(mean, mean - margin, mean + margin, by_prompt=values)

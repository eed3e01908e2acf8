"""The metrics of pictures of the visible world by name: what each needs, which direction is better, and the number."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rapm_cli.core.common.randomness import generator_for
from rapm_cli.core.common.registry import Registry
from rapm_cli.metrics.bootstrap import NORMAL_95
from rapm_cli.metrics.discrepancy import clip_discrepancy
from rapm_cli.metrics.frechet import Moments, frechet_distance
from rapm_cli.metrics.kernel import KID_SUBSET_SIZE, distance_error, kernel_distance, subset_distances
from rapm_cli.metrics.neighbours import NEIGHBOURS, Overlap, overlap

INCEPTION, CLIP, CLIP_336, DINO = "inception", "clip", "clip-336", "dinov2"  # extractors


@dataclass(frozen=True)
class Real:
    """What a network sees in real pictures.

    Args:
        moments: Of the features.
        features: (M, D), where they are known.
    """

    moments: Moments
    features: Tensor | None = None


@dataclass(frozen=True)
class Beside:
    """A contestant's pictures beside its teacher's, of the same K prompts and noise.

    Args:
        pictures: (K,) root mean square difference of the pictures, in grey levels of 255.
        positions: (K, N) that of the latents at each slot edge, `[:, 0]` the clean ones.
    """

    pictures: Tensor
    positions: Tensor


@dataclass(frozen=True)
class Evidence:
    """What is known of N pictures of one contestant.

    Args:
        moments: By extractor, of its features.
        features: By extractor, (N, D), where a metric wants every picture's.
        real: By extractor, what it sees in the reference.
        texts: (N, D) CLIP's embeddings of the prompts.
        beside: Its first pictures beside the teacher's; None where nobody drew those.
    """

    moments: Mapping[str, Moments]
    features: Mapping[str, Tensor]
    real: Mapping[str, Real]
    texts: Tensor | None = None
    beside: Beside | None = None

    @cached_property
    def overlap(self) -> Overlap:
        """With the reference, as Inception sees both."""
        real = self.real[INCEPTION].features
        assert real is not None
        return overlap(self.features[INCEPTION], real)


@dataclass(frozen=True)
class Figure:
    """A metric's value.

    Args:
        value: The number.
        low: Of its 95 % interval over other prompts and noise; None where none is computed.
        high: Of the same.
        spread: Standard deviation over subsets, where the metric is published with one.
        by_prompt: (N,) or (K,) the value of each prompt, where the metric is their mean.
    """

    value: float
    low: float | None = None
    high: float | None = None
    spread: float | None = None
    by_prompt: Tensor | None = None


@dataclass(frozen=True)
class PictureMetric:
    """A number from evidence.

    Args:
        title: As in tables.
        is_higher_better: Which direction is better.
        compute: Evidence to the number.
        extractor: Whose features it looks at; None where it looks at pictures and latents themselves.
        wants_moments: Whether it needs real pictures, or their statistics.
        wants_features: Whether it needs every picture's features, real ones' too.
        wants_texts: Whether it needs the prompts.
        wants_teacher: Whether it needs the teacher's pictures of the same prompts and noise.
        digits: After the decimal point, in tables.
        least: Pictures that it can be computed of.
    """

    title: str
    is_higher_better: bool
    compute: Callable[[Evidence], Figure]
    extractor: str | None = None
    wants_moments: bool = False
    wants_features: bool = False
    wants_texts: bool = False
    wants_teacher: bool = False
    digits: int = 2
    least: int = 1


PICTURE_METRICS: Registry[PictureMetric] = Registry("metric")
MIN_OVERLAP = max(NEIGHBOURS) + 1
USUAL = ("fid", "kid", "clip", "fidelity", "latents", "position")


def mean_figure(values: Tensor) -> Figure:
    """The mean of what each prompt gives, and what other prompts would make of it."""
    mean = float(values.double().mean())
    if len(values) < 2:
        return Figure(mean, by_prompt=values)
    margin = NORMAL_95 * float(values.double().std()) / len(values) ** 0.5
    return Figure(mean, mean - margin, mean + margin, by_prompt=values)


def clip_scores(features: Tensor, texts: Tensor) -> Tensor:
    """(N,) 100 times the cosine between each picture's and its prompt's embedding."""
    return 100 * torch.nn.functional.cosine_similarity(features.double(), texts.double(), dim=1)


def _frechet(extractor: str) -> Callable[[Evidence], Figure]:
    def compute(evidence: Evidence) -> Figure:
        return Figure(frechet_distance(evidence.moments[extractor], evidence.real[extractor].moments))

    return compute


def _kid(evidence: Evidence) -> Figure:
    """Published as mean and spread of subsets, which are all the same where there are no more pictures than in one."""
    ours, real = evidence.features[INCEPTION], evidence.real[INCEPTION].features
    assert real is not None
    margin = NORMAL_95 * distance_error(ours, real, generator_for("KID rows"))
    if min(len(ours), len(real)) <= KID_SUBSET_SIZE:
        value, spread = kernel_distance(ours, real), None
    else:
        subsets = subset_distances(ours, real, generator_for("KID subsets"))
        value, spread = float(subsets.mean()), float(subsets.std())
    return Figure(value, value - margin, value + margin, spread)


def _clip(evidence: Evidence) -> Figure:
    assert evidence.texts is not None
    return mean_figure(clip_scores(evidence.features[CLIP], evidence.texts))


def _cmmd(evidence: Evidence) -> Figure:
    real = evidence.real[CLIP_336].features
    assert real is not None
    return Figure(clip_discrepancy(evidence.features[CLIP_336], real))


def _beside(choose: Callable[[Beside], Tensor]) -> Callable[[Evidence], Figure]:
    def compute(evidence: Evidence) -> Figure:
        assert evidence.beside is not None
        return mean_figure(choose(evidence.beside))

    return compute


_add = PICTURE_METRICS.add
_add("fid")(PictureMetric("FID", False, _frechet(INCEPTION), INCEPTION, wants_moments=True, least=2))
_add("kid")(PictureMetric("KID", False, _kid, INCEPTION, wants_features=True, digits=5, least=2))
_add("clip")(PictureMetric("CLIP score", True, _clip, CLIP, wants_texts=True))
_add("cmmd")(PictureMetric("CMMD", False, _cmmd, CLIP_336, wants_features=True, digits=3, least=2))
_add("fd-dinov2")(PictureMetric("FD-DINOv2", False, _frechet(DINO), DINO, wants_moments=True, least=2))
for _name in ("precision", "recall", "density", "coverage"):
    _compute = lambda evidence, name=_name: Figure(getattr(evidence.overlap, name))  # noqa: E731
    _add(_name)(PictureMetric(_name, True, _compute, INCEPTION, wants_features=True, digits=3, least=MIN_OVERLAP))
for _name, _title, _choose, _digits in (
    ("fidelity", "pictures off the teacher's", lambda found: found.pictures, 2),
    ("latents", "latents off", lambda found: found.positions[:, 0], 3),
    ("position", "positions off", lambda found: found.positions.mean(dim=1), 3),
):
    _add(_name)(PictureMetric(_title, False, _beside(_choose), wants_teacher=True, digits=_digits))

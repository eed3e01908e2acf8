"""Features of samples and of reference images, kept beside the images: the evidence that metrics are computed from."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rapm_cli.core.common.errors import ConfigError, WeightsError
from rapm_cli.core.common.progress import NO_BAR, Reporter
from rapm_cli.evaluate.chunk_cache import ChunkCache, is_intact, read_tensors
from rapm_cli.evaluate.models import TEACHER
from rapm_cli.evaluate.plan import SamplePlan
from rapm_cli.evaluate.reference import statistics_of
from rapm_cli.evaluate.request import PROTOCOLS, Options, Protocol, Request, reference_of
from rapm_cli.evaluate.samples import SampleSet
from rapm_cli.extractors import EXTRACTORS, Extractor, Opening
from rapm_cli.extractors.clip import TextReader, open_pair
from rapm_cli.extractors.statistics import Statistics, require_same, write_statistics
from rapm_cli.metrics import METRICS
from rapm_cli.metrics.metric import CLIP, Evidence, ReferenceFeatures
from rapm_cli.metrics.moments import Moments, RunningMoments
from rapm_cli.runs import signals
from rapm_cli.runs.versions import versions

FEATURES = "features.safetensors"
CHUNK = 1024  # images whose features are kept together
NEEDS_OF_ALL = ("wants_features", "wants_texts", "wants_teacher", "wants_true")  # needs of the features of every sample


def extract(samples: SampleSet, extractor: Extractor, reporter: Reporter, count: int | None = None) -> Iterator[Tensor]:
    """Yield (B, D) float32 features of a set's kept images, in order; features found on the disk are not computed.

    Args:
        samples: The set.
        extractor: The extractor.
        reporter: Reporter of progress.
        count: Number of first images; None for all.

    Raises:
        Stopped: A signal came; the features of all whole chunks are kept.
    """
    readers, cache = samples.readers(count), ChunkCache(samples.folder, reporter)
    count = len(readers)
    chunks = [range(k, min(k + CHUNK, count)) for k in range(0, count, CHUNK)]
    names = {chunk: _name(samples, extractor, chunk) for chunk in chunks}
    kept = {chunk for chunk, name in names.items() if cache.has(name, FEATURES)}
    title = extractor.identity.partition(" ")[0].rpartition("/")[2]
    done = sum(map(len, kept))
    bar = reporter.bar(f"{title}, {samples.model.role}", count, "image", extractor.device, done=done)
    with bar if done < count else nullcontext(NO_BAR) as shown, signals.deferred("this batch"):
        for chunk, name in names.items():
            if chunk not in kept and not is_intact(samples.folder / name, FEATURES):
                found = []
                for part in extractor.features(readers[chunk.start : chunk.stop]):
                    found.append(part)
                    shown.advance(len(part))
                    signals.check("earlier features are kept", "resume with: the same command")
                _keep(cache, name, torch.cat(found))
            yield read_tensors(samples.folder / name, FEATURES)["features"]


def _name(samples: SampleSet, extractor: Extractor, chunk: range) -> str:
    """Return the name of a chunk of features, which depends on the images and on the extractor."""
    prompts = [samples.plan.prompts[k] for k in chunk]
    key = json.dumps([extractor.identity, chunk.start, prompts])
    return f"seen-{hashlib.sha256(key.encode()).hexdigest()[:24]}"


def _keep(cache: ChunkCache, name: str, features: Tensor) -> None:
    from safetensors.torch import save

    cache.keep(name, {FEATURES: save({"features": features})})


@dataclass(frozen=True)
class Found:
    """What is known of one model's samples before metrics are computed, by extractor."""

    moments: dict[str, Moments] = field(default_factory=dict)
    features: dict[str, Tensor] = field(default_factory=dict)
    texts: list[Tensor] = field(default_factory=list)  # at most one
    true_features: dict[str, Tensor] = field(default_factory=dict)


def gather(
    request: Request,
    splits: Sequence[Sequence[SampleSet]],
    references: Mapping[str, Statistics],
    device: torch.device,
    reporter: Reporter,
) -> tuple[list[list[Evidence]], dict[str, str]]:
    """Return the evidence for every model in every split, and the identities of the extractors by name.

    Args:
        request: Request of the evaluation.
        splits: For each split, the sampled sets of all models; a teacher comes first.
        references: Statistics of the reference images, by extractor.
        device: Device of the extractors.
        reporter: Reporter of progress.
    """
    found, identities = [[Found() for _ in sets] for sets in splits], {}
    for name in request.extractors:  # one is open at a time
        extractor, texts = open_extractor(name, request, device, reporter)
        identities[name] = extractor.identity
        for plan, sets, founds in zip(request.plans, splits, found, strict=True):
            prompts = list(plan.prompts)
            embedded = [_embedded(texts, prompts, reporter)] if texts else []
            true = {name: _true_features(plan, extractor)} if request.wants("wants_true", name) else {}
            for samples, each in zip(sets, founds, strict=True):
                each.texts.extend(embedded)
                each.true_features.update(true)
                if request.wants("wants_teacher", name):
                    _extract_all(each, name, samples, extractor, request, reporter, samples.compared(sets[0]))
                elif samples.plan.images == len(prompts):  # a teacher without labels has the first ones only
                    _extract_all(each, name, samples, extractor, request, reporter)
    for labels in {plan.labels.known.reader: plan.labels for plan in request.plans if plan.labels}.values():
        identities[labels.known.reader] = labels.reader.identity
    sides = {name: ReferenceFeatures(made.moments, made.features) for name, made in references.items()}
    made = [
        [
            _evidence(request, samples, sets[0], each, founds[0], sides)
            for samples, each in zip(sets, founds, strict=True)
        ]
        for sets, founds in zip(splits, found, strict=True)
    ]
    return made, identities


def _evidence(
    request: Request,
    samples: SampleSet,
    first: SampleSet,
    found: Found,
    first_found: Found,
    sides: dict[str, ReferenceFeatures],
) -> Evidence:
    has_teacher = first.model.role == TEACHER and samples is not first
    wants_images, count = request.wants("wants_images"), samples.compared(first)
    has_others = wants_images and has_teacher and samples.other is not None and first.other is not None
    return Evidence(
        prompts=samples.plan.prompts,
        images=samples.readers() if wants_images else (),
        moments=found.moments,
        features=found.features,
        reference=sides,
        texts=next(iter(found.texts), None),
        labelled=samples.labelled(),
        teacher=samples.difference(first) if has_teacher else None,
        teacher_images=first.readers(count) if wants_images and has_teacher else (),
        others=samples.other.readers() if has_others and samples.other else (),
        teacher_others=first.other.readers() if has_others and first.other else (),
        teacher_features={k: x[:count] for k, x in first_found.features.items()} if has_teacher else {},
        true_features=found.true_features,
    )


def _true_features(plan: SamplePlan, extractor: Extractor) -> Tensor:
    """Return (N, D) features of the true images of a plan's prompts."""
    assert plan.labels is not None
    found: list[Tensor] = []
    for chunk in plan.chunks:
        images = (plan.labels.known.true_images(chunk) * 255).round().byte().permute(0, 2, 3, 1).numpy()
        found += extractor.features([partial(np.asarray, image) for image in images])
    return torch.cat(found)


def _extract_all(
    found: Found,
    name: str,
    samples: SampleSet,
    extractor: Extractor,
    request: Request,
    reporter: Reporter,
    count: int | None = None,
) -> None:
    """Extract features once; memory grows with the number of images only if a metric wants all features."""
    running, kept = RunningMoments(extractor.width), []
    keep = any(request.wants(need, name) for need in NEEDS_OF_ALL)
    for features in extract(samples, extractor, reporter, count):
        running.add(features)
        kept += [features] if keep else []
    if running.count > 1:
        found.moments[name] = running.result()
        if found.moments[name].is_singular and request.wants("wants_moments", name):
            reporter.warn(
                f"{running.count:,} images are fewer than {name}'s {extractor.width:,} features: FD is far off"
            )
    if keep:
        found.features[name] = torch.cat(kept)


def _embedded(texts: TextReader, prompts: list[str], reporter: Reporter) -> Tensor:
    """Return the embeddings of prompts, and warn of those that CLIP does not read to the end."""
    if cut := sum(map(texts.is_cut, prompts)):
        reporter.warn(f"CLIP does not read the end of {cut:,} of {len(prompts):,} prompts")
    return texts.features(prompts)


def open_extractor(
    name: str, request: Request, device: torch.device, reporter: Reporter
) -> tuple[Extractor, TextReader | None]:
    """Return an extractor and, for the CLIP score, the text side of its network."""
    opening = Opening(device, reporter, request.inception, request.protocol.clip_model)
    if name != CLIP:
        return EXTRACTORS[name](opening), None
    extractor, texts = open_pair(opening, request.protocol.clip_prefix)
    return extractor.after(request.protocol.clip_preparation), texts


def reference_statistics(
    request: Request, device: torch.device, reporter: Reporter
) -> tuple[Request, dict[str, Statistics]]:
    """Open every extractor once, so that missing weights are found before hours of sampling.

    Returns:
        The request without the metrics whose extractors are missing and that the user did not ask for; and the
        statistics of the reference images by extractor.

    Raises:
        WeightsError: The weights of a required extractor are missing, or no metric is left.
        ConfigError: The package of a required extractor is missing.
        InputError: The statistics were made in another way.
    """
    found = {}
    for name in request.extractors:
        try:
            extractor, _ = open_extractor(name, request, device, reporter)
        except (WeightsError, ConfigError) as error:
            rest = request.without(name)
            if name in request.required or not rest.metrics:
                raise
            lost = [METRICS[metric].title for metric in request.metrics if metric not in rest.metrics]
            reporter.warn(f"without {' and '.join(lost)}: {error.message}; {error.remedy}")
            request = rest
            continue
        if request.reference and (request.wants("wants_moments", name) or request.wants("wants_features", name)):
            found[name] = _statistics(request, name, extractor, reporter)
    return request, found


def _statistics(request: Request, name: str, extractor: Extractor, reporter: Reporter) -> Statistics:
    reference, preparation = request.reference, request.protocol.preparation
    assert reference is not None
    if reference.statistics is None:
        keep = request.wants("wants_features", name)
        return statistics_of(reference, preparation, extractor, reporter, keep=keep)
    require_same(reference.statistics, extractor.identity, extractor.width, preparation.spec)
    return reference.statistics


def save_reference(asked: Options, path: Path, device: torch.device, reporter: Reporter) -> Statistics:
    """Write the statistics of reference images under one extractor; with features if a metric wants them.

    Args:
        asked: Reference, protocol, and the metrics that determine the extractor; FID and KID if none are named.
        path: Path of the file, which ends in `.safetensors`.
        device: Device of the extractor.
        reporter: Reporter of progress.

    Raises:
        ConfigError: There are no reference images, or the metrics need several extractors.
    """
    if path.suffix != ".safetensors":
        raise ConfigError(f"--save-reference {path} has another ending", "let it end in .safetensors")
    protocol = PROTOCOLS[asked.protocol] if asked.protocol else Protocol()
    reference = reference_of(protocol, asked.reference, asked.samples or protocol.samples)
    if reference is None or reference.statistics:
        raise ConfigError("--save-reference needs images", "give --reference DIR, or coco:DIR")
    metrics = [METRICS[name] for name in asked.metrics or ("fid", "kid")]
    names = {None if metric.wants_labels else metric.extractor for metric in metrics}
    name = names.pop()
    if names or name is None:
        raise ConfigError("--save-reference is for one network", "give --metrics fid,kid, or fd-dinov2, or cmmd")
    extractor = EXTRACTORS[name](Opening(device, reporter, asked.inception, asked.clip_model))
    keep = any(metric.wants_features for metric in metrics)
    made = statistics_of(reference, protocol.preparation, extractor, reporter, keep=keep)
    write_statistics(path, made, versions())
    return made

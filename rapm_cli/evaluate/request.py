"""The request of an evaluation: complete, and refused before any work if it cannot be answered."""

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rapm_cli.bases import Base
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry
from rapm_cli.evaluate.plan import LABELLED_BATCH, SamplePlan, labelled_plan
from rapm_cli.evaluate.reference import COCO, Reference, coco_pairs, find_reference, list_digest
from rapm_cli.extractors.clip import USUAL as USUAL_CLIP
from rapm_cli.extractors.preparation import AS_IT_IS, Preparation
from rapm_cli.metrics import METRICS, NAMES
from rapm_cli.metrics.metric import CLIP, Metric
from rapm_cli.runs.prompts import read_prompts
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.settings import MAX_SAMPLES, MIN_SAMPLES

MANY = 5000  # number of images from which FID is listed before KID
TEACHER_SAMPLES = 64  # prompts for the teacher: one of its images costs as much as twenty of its student's
LABELLED_SAMPLES = 640  # labelled prompts in each split
SPARE = 2  # times as many prompts are made as are needed: some repeat, or training saw them
UNSEEN_SEED = 2**62  # first seed of prompts for evaluation; training takes small seeds
SPLITS = {"held-out": (True,), "seen": (False,), "both": (True, False)}  # whether each split's scenes are held out


@dataclass(frozen=True)
class Protocol:
    """Named way to evaluate. Results with the same protocol can be compared.

    Args:
        name: Name of the protocol; empty for the user's own.
        samples: Number of prompts.
        preparation: Preparation of reference images and samples.
        rounding: Rounding of sampled values to bytes: "nearest", or "down" for truncation.
        has_coco_pairs: Whether prompts and reference are COCO's captions with their images.
        captions_sha256: sha256 of the protocol's own file of prompts; empty if it has none.
        clip_preparation: Further preparation of the images for CLIP.
        clip_model: CLIP model of the CLIP score.
        clip_prefix: Text before every prompt in the CLIP score.
        size: Size of the samples before their preparation; empty for the base's own.
    """

    name: str = ""
    samples: int = 1000
    preparation: Preparation = AS_IT_IS
    rounding: str = "nearest"
    has_coco_pairs: bool = False
    captions_sha256: str = ""
    clip_preparation: Preparation = AS_IT_IS
    clip_model: str = USUAL_CLIP
    clip_prefix: str = ""
    size: str = ""

    @property
    def words(self) -> dict[str, str]:
        """Settings of the protocol, for the record."""
        return {
            "protocol": self.name or "own",
            "preparation": self.preparation.spec,
            "rounding": self.rounding,
            "clip_preparation": self.clip_preparation.spec,
            "clip_prefix": self.clip_prefix,
        } | ({"size": self.size} if self.size else {})


PROTOCOLS: Registry[Protocol] = Registry("protocol")
PROTOCOLS.add("coco30k")(Protocol("coco30k", 30_000, Preparation(256, "bicubic"), has_coco_pairs=True))
LABELLED = Protocol("labelled")  # for a base with labelled prompts

# DMD2's evaluator: its list of captions, every image of val2014 (for SDXL, of its own coco10k folder), Lanczos, bytes
# by truncation, and a CLIP of its own, which sees 256 pixels whatever FID does. Here CLIP's images are made from the
# kept ones of 512 pixels, there from the full ones. There the noise depends on the batch, here on the prompt.
DMD2 = Protocol(
    "dmd2-coco30k",
    30_000,
    Preparation(256, "lanczos", has_even_margins=True),
    rounding="down",
    captions_sha256="edabd2a556026cbf5d36a5fffa35ad43d7ba71b72f6d640b727c1edefb7f1945",
    clip_model="laion/CLIP-ViT-g-14-laion2B-s12B-b42K",
    clip_prefix="A photo depicts ",
)
PROTOCOLS.add("dmd2-coco30k")(DMD2)
PROTOCOLS.add("dmd2-coco10k")(
    replace(
        DMD2,
        name="dmd2-coco10k",
        samples=10_000,
        preparation=Preparation(512, "lanczos", has_even_margins=True),
        clip_preparation=DMD2.preparation,
    )
)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Options of the command line; None if the user did not give one.

    Args:
        protocol: Name of a protocol.
        prompts: Source of prompts, as `read_prompts` takes it.
        reference: Reference, as `find_reference` takes it.
        metrics: Names of metrics.
        samples: Number of prompts, in each split.
        seed: Seed of noise and prompts.
        batch_size: Number of prompts that are sampled together.
        teacher_samples: Number of prompts that the teacher samples too, and that every model samples with other noise.
        inception: Path of Inception's weights.
        clip_model: CLIP model instead of the protocol's.
        split: Name from `SPLITS`, for a base with labelled prompts.
        size: Size of the samples, such as "832x1216".
    """

    protocol: str | None = None
    prompts: str | None = None
    reference: str | None = None
    metrics: Sequence[str] | None = None
    samples: int | None = None
    seed: int = 0
    batch_size: int | None = None
    teacher_samples: int | None = None
    inception: Path | None = None
    clip_model: str | None = None
    split: str = "both"
    size: str | None = None


@dataclass(frozen=True, kw_only=True)
class Request:
    """Everything that an evaluation measures.

    Args:
        protocol: Protocol of the evaluation.
        plans: Samples to make, one plan for each split; without labels there is one plan.
        metrics: Names from `METRICS`.
        reference: Reference images; None if no metric needs them.
        teacher_samples: Number of first prompts on which models are compared with the teacher; whole batches.
        other_samples: Number of first prompts that are sampled with other noise too; whole batches.
        inception: Path of Inception's weights; None for the usual places.
        required: Extractors that the user asked for; metrics of others are left out where weights are missing.
    """

    protocol: Protocol
    plans: tuple[SamplePlan, ...]
    metrics: Sequence[str]
    reference: Reference | None = None
    teacher_samples: int = 0
    other_samples: int = 0
    inception: Path | None = None
    required: frozenset[str] = frozenset()

    @property
    def extractors(self) -> list[str]:
        """Names of the extractors that the metrics need for kept images."""
        names = (metric.extractor for metric in self._metrics if not metric.wants_labels)
        return list(dict.fromkeys(name for name in names if name))

    def without(self, extractor: str) -> "Request":
        """Return the request without the metrics that need an extractor for kept images."""
        lost = [METRICS[name].extractor == extractor and not METRICS[name].wants_labels for name in self.metrics]
        return replace(self, metrics=[name for name, is_lost in zip(self.metrics, lost, strict=True) if not is_lost])

    def wants(self, need: str, extractor: str | None = None) -> bool:
        """Return whether a metric, of this extractor if one is named, has a need such as "wants_texts"."""
        return any(getattr(metric, need) and extractor in (None, metric.extractor) for metric in self._metrics)

    @property
    def _metrics(self) -> list[Metric]:
        return [METRICS[name] for name in self.metrics]


def build_request(chosen: ResolvedLora, options: Options, reporter: Reporter) -> Request:
    """Return the request that the options make for a LoRA's base.

    Raises:
        ConfigError: Options contradict each other, or a metric needs something that is not given.
        InputError: A file cannot be used.
    """
    return (_labelled_request if chosen.base.labelled_prompts else _request)(chosen, options, reporter)


def _labelled_request(chosen: ResolvedLora, options: Options, reporter: Reporter) -> Request:
    """Return the request for a base with labelled prompts; every model samples all of them."""
    samples = LABELLED_SAMPLES if options.samples is None else options.samples
    if options.split not in SPLITS:
        raise ConfigError(f"--split {options.split} is unknown", f"give one of {', '.join(SPLITS)}")
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise ConfigError(f"--samples {samples} is out of range", f"give {MIN_SAMPLES} to {MAX_SAMPLES}")
    compared = min(TEACHER_SAMPLES if options.teacher_samples is None else options.teacher_samples, samples)
    beside = samples if compared else 0
    metrics = _metrics(options.metrics, None, samples, beside, reporter, has_labels=True)
    batch = options.batch_size or LABELLED_BATCH
    plans = [
        labelled_plan(chosen.base, samples, options.seed, held_out, reporter, batch=batch)
        for held_out in SPLITS[options.split]
    ]
    made = Request(
        protocol=LABELLED,
        plans=tuple(plans),
        metrics=metrics,
        teacher_samples=beside,
        other_samples=plans[0].whole_batches(compared),
        required=_required(options),
    )
    images = samples if compared or made.extractors else 0
    kept = (replace(plan, images=images, positions=made.teacher_samples) for plan in plans)
    return replace(made, plans=tuple(kept))


def _request(chosen: ResolvedLora, options: Options, reporter: Reporter) -> Request:
    """Return the request for any other base; teacher and undistilled base sample the first prompts only."""
    protocol = PROTOCOLS[options.protocol] if options.protocol else Protocol()
    if options.clip_model:
        protocol = _changed(replace(protocol, clip_model=options.clip_model), "another CLIP", reporter)
    samples = protocol.samples if options.samples is None else options.samples
    if samples < 1:
        raise ConfigError(f"--samples {samples} is out of range", "give at least 1")
    reference = reference_of(protocol, options.reference, samples)
    prompts = _prompts(protocol, options, chosen, samples, reporter)
    compared = min(TEACHER_SAMPLES if options.teacher_samples is None else options.teacher_samples, len(prompts))
    if len(prompts) != protocol.samples:
        protocol = _changed(protocol, f"{len(prompts):,} prompts", reporter)
    if options.size:
        protocol = _changed(replace(protocol, size=options.size), f"samples of {options.size}", reporter)
    if protocol.captions_sha256 and reference and reference.statistics:
        protocol = _changed(protocol, "statistics of others", reporter)
    batch = options.batch_size or chosen.base.defaults.image_batch
    plan = SamplePlan(
        prompts, options.seed, batch, len(prompts), preparation=protocol.preparation, rounding=protocol.rounding
    )
    size = chosen.base.size(options.size, reporter)
    plan = replace(plan, positions=plan.whole_batches(compared), size=size)
    return Request(
        protocol=protocol,
        plans=(plan,),
        metrics=_metrics(options.metrics, reference, len(prompts), compared, reporter),
        reference=reference,
        teacher_samples=plan.positions,
        other_samples=plan.positions,
        inception=options.inception,
        required=_required(options),
    )


def _required(options: Options) -> frozenset[str]:
    """Return the extractors that the options ask for by naming metrics, or weights."""
    named = {METRICS[name].extractor for name in options.metrics or ()}
    named |= ({"inception"} if options.inception else set()) | ({CLIP} if options.clip_model else set())
    return frozenset(name for name in named if name)


def _changed(protocol: Protocol, how: str, reporter: Reporter) -> Protocol:
    """Return a protocol whose name says how it was changed."""
    if not protocol.name:
        return protocol
    reporter.warn(f"with {how} results cannot be compared with those of {protocol.name}")
    return replace(protocol, name=f"{protocol.name}, but {how}")


def reference_of(protocol: Protocol, given: str | None, samples: int) -> Reference | None:
    """Return the reference that `--reference` means under a protocol.

    Raises:
        ConfigError: The protocol takes another reference.
    """
    if protocol.has_coco_pairs and not (given or "").startswith(COCO):
        raise ConfigError(f"--protocol {protocol.name} takes COCO's own images", "give --reference coco:DIR")
    if given is None:
        return None
    return find_reference(given, samples if protocol.has_coco_pairs else None)


def _prompts(protocol: Protocol, options: Options, chosen: ResolvedLora, samples: int, reporter: Reporter) -> list[str]:
    if protocol.has_coco_pairs:
        if options.prompts:
            raise ConfigError(f"--prompts does not go with --protocol {protocol.name}", "it has COCO's captions")
        pairs = coco_pairs(Path((options.reference or "").removeprefix(COCO)), samples)
        reporter.say(f"{samples:,} captions of COCO, list {list_digest(pairs)[:16]}")
        return [pair.caption for pair in pairs]
    if protocol.captions_sha256:
        _require(protocol, options.prompts)
    if options.prompts is None:
        return unseen_prompts(chosen.base, _seen_prompts(chosen), samples, options.seed)
    read = read_prompts(options.prompts, reporter)
    if options.samples and len(read) < samples:
        raise ConfigError(f"{options.prompts} has {len(read):,} prompts, not {samples:,}", "give a smaller --samples")
    return read[:samples]


def _require(protocol: Protocol, source: str | None) -> None:
    """Check that the prompts are the protocol's own."""
    wanted = f"captions_coco14_test.txt of DMD2, sha256 {protocol.captions_sha256}"
    if source is None or not Path(source).is_file():
        raise ConfigError(f"--protocol {protocol.name} has captions of its own", f"give --prompts {wanted}")
    found = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if found != protocol.captions_sha256:
        raise InputError(f"{source} is not the list of {protocol.name}: sha256 {found}", f"give {wanted}")


def _seen_prompts(chosen: ResolvedLora) -> set[str]:
    """Return the prompts of the base that the LoRA was distilled on, as far as its file says."""
    recipe = chosen.lora.recipe.get("teacher", {})
    count, seed = recipe.get("trajectories"), recipe.get("seed")
    return set(chosen.base.training_prompts(count, seed)) if count and seed is not None else set()


def unseen_prompts(base: Base, seen: Collection[str], count: int, seed: int) -> list[str]:
    """Return `count` prompts of the base that are not among those seen in training.

    Raises:
        ConfigError: There are not enough.
    """
    made = dict.fromkeys(p for p in base.training_prompts(SPARE * count, UNSEEN_SEED + seed) if p not in seen)
    if len(made) < count:
        raise ConfigError(f"there are only {len(made):,} prompts that training has not seen", "give --prompts FILE")
    return list(made)[:count]


def _metrics(
    named: Sequence[str] | None,
    reference: Reference | None,
    samples: int,
    compared: int,
    reporter: Reporter,
    *,
    has_labels: bool = False,
) -> list[str]:
    """Return the metrics that can be computed; those that the user named must be among them.

    Args:
        named: Names that the user gave; None for the usual metrics.
        reference: Reference images.
        samples: Number of prompts.
        compared: Number of prompts on which models are compared with the teacher.
        reporter: Reporter of metrics that are left out.
        has_labels: Whether the prompts have labels.

    Raises:
        ConfigError: A named metric lacks something, or has too few samples.
    """
    fewest = min(samples, reference.count or samples) if reference else samples
    chosen, left_out = [], []
    for name in named or [name for name in NAMES if METRICS[name].is_usual]:
        metric = METRICS[name]
        lacks, remedy = _lack(metric, reference, compared, has_labels)
        if lacks and named:
            raise ConfigError(f"--metrics {name}: {metric.title} needs {lacks}", remedy)
        if lacks:
            left_out += [metric.title] if "reference" in lacks and not has_labels else []
        elif metric.wants_teacher and compared < metric.fewest and not named:
            reporter.say(f"without {metric.title}: it needs the teacher's samples for {metric.fewest} prompts or more")
        elif (compared if metric.wants_teacher else fewest) < metric.fewest:
            needs = f"{metric.title} needs at least {metric.fewest} images, not {fewest}"
            raise ConfigError(needs, "give more --samples, or more reference images")
        elif named or not (has_labels and metric.wants_texts):
            chosen.append(name)
    if samples < MANY and {"fid", "kid"} <= set(chosen):
        chosen = [{"fid": "kid", "kid": "fid"}.get(name, name) for name in chosen]
        reporter.say(f"of {samples:,} images KID says more than FID, which is biased upward for few images")
    if left_out:
        reporter.say(f"{' and '.join(left_out)} need reference images: give --reference DIR for them")
    return chosen


def _lack(metric: Metric, reference: Reference | None, compared: int, has_labels: bool) -> tuple[str, str]:
    """Return what a metric lacks, and the remedy; empty if it lacks nothing."""
    if metric.wants_labels and not has_labels:
        return "prompts with labels", "give --base demo"
    if metric.wants_true and not has_labels:
        return "true images of its prompts", "give --base demo"
    if metric.wants_teacher and not compared:
        return "the teacher's samples", "give --teacher-samples of at least 1"
    labelled = [name for name in NAMES if METRICS[name].wants_labels]
    give_reference = f"give {', '.join(labelled)}" if has_labels else "give --reference DIR, or coco:DIR"
    has_features = reference is not None and (reference.statistics is None or reference.statistics.features is not None)
    if metric.wants_features and not has_features:
        return "reference images", give_reference
    if metric.wants_moments and reference is None:
        return "reference images, or their statistics", give_reference
    return "", ""

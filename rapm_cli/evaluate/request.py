"""What the user asks of an evaluation, made whole and refused before any work where it cannot be answered."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rapm_cli.bases import Base
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.evaluate.coco import coco_pairs, list_digest
from rapm_cli.evaluate.evaluate import Request
from rapm_cli.evaluate.protocols import PROTOCOLS, Protocol
from rapm_cli.evaluate.reference import COCO, Reference, find_reference
from rapm_cli.metrics.pictures import PICTURE_METRICS, USUAL
from rapm_cli.runs.prompts import read_prompts
from rapm_cli.runs.resolve_lora import ResolvedLora

MANY = 5000  # pictures from which on FID goes before KID
BESIDE = 64  # prompts that teacher and base draw too: a teacher's picture costs twenty of its student's
SPARE = 2  # times as many prompts are made as are needed, for those that repeat or that training saw
EXAM = Protocol("exam")  # what is right is known of every prompt
UNSEEN_SEED = 2**62  # of prompts for evaluation; training takes small ones


@dataclass(frozen=True, kw_only=True)
class Options:
    """As the command line has them; None where the user said nothing.

    Args:
        protocol: Name of one.
        prompts: Source of prompts, as `read_prompts` takes it.
        reference: As `find_reference` takes it.
        metrics: Names.
        samples: Prompts.
        seed: Of noise and prompts.
        batch_size: Prompts that are drawn together.
        beside: Prompts that the teacher draws too.
        inception: Path of Inception's weights.
        clip_model: In place of the protocol's.
    """

    protocol: str | None = None
    prompts: str | None = None
    reference: str | None = None
    metrics: Sequence[str] | None = None
    samples: int | None = None
    seed: int = 0
    batch_size: int | None = None
    beside: int | None = None
    inception: Path | None = None
    clip_model: str | None = None


def ask(chosen: ResolvedLora, options: Options, reporter: Reporter) -> Request:
    """The whole request.

    Raises:
        ConfigError: Options contradict each other, or a metric needs what is not given.
        InputError: A file is not what it should be.
    """
    protocol = PROTOCOLS[options.protocol] if options.protocol else Protocol()
    if options.clip_model:
        protocol = _changed(replace(protocol, clip_model=options.clip_model), "another CLIP", reporter)
    samples = protocol.samples if options.samples is None else options.samples
    if samples < 1:
        raise ConfigError(f"--samples {samples} is out of range", "give at least 1")
    reference = reference_of(protocol, options.reference, samples)
    prompts = _prompts(protocol, options, chosen, samples, reporter)
    alone = [name for name in options.metrics or () if options.beside == 0 and PICTURE_METRICS[name].wants_teacher]
    if alone:
        raise ConfigError(f"--metrics {alone[0]} needs the teacher's pictures", "give --beside of at least 1")
    if len(prompts) != protocol.samples:
        protocol = _changed(protocol, f"{len(prompts):,} prompts", reporter)
    if protocol.captions_sha256 and reference and reference.statistics:
        protocol = _changed(protocol, "statistics of others", reporter)
    return Request(
        protocol=protocol,
        prompts=prompts,
        metrics=_metrics(options.metrics, reference, len(prompts), reporter),
        reference=reference,
        seed=options.seed,
        batch=options.batch_size or chosen.base.defaults.picture_batch,
        beside=min(BESIDE if options.beside is None else options.beside, len(prompts)),
        inception=options.inception,
    )


def _changed(protocol: Protocol, how: str, reporter: Reporter) -> Protocol:
    """A protocol that was departed from, which its name says from here on."""
    if not protocol.name:
        return protocol
    reporter.warn(f"with {how} figures cannot be compared with those of {protocol.name}")
    return replace(protocol, name=f"{protocol.name}, but {how}")


def ask_of_exam(chosen: ResolvedLora, options: Options, held_out: bool) -> Request:
    """The same of a base that has an exam: the distance to the teacher on its first prompts.

    Raises:
        ConfigError: There are none.
    """
    wanted = BESIDE if options.beside is None else options.beside
    count = wanted if options.samples is None else min(wanted, options.samples)
    if count < 1:
        raise ConfigError(f"--beside {count} leaves nothing to show", "give at least 1")
    assert chosen.base.set_exam is not None
    return Request(
        protocol=EXAM,
        prompts=chosen.base.set_exam(0, count, options.seed, held_out).prompts,
        metrics=[name for name in USUAL if PICTURE_METRICS[name].wants_teacher],
        reference=None,
        seed=options.seed,
        batch=options.batch_size or chosen.base.defaults.picture_batch,
        beside=count,
    )


def reference_of(protocol: Protocol, given: str | None, samples: int) -> Reference | None:
    """What `--reference` means under a protocol.

    Raises:
        ConfigError: It is not what the protocol takes.
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
        return unseen_prompts(chosen.base, chosen, samples, options.seed)
    read = read_prompts(options.prompts, reporter)
    if options.samples and len(read) < samples:
        raise ConfigError(f"{options.prompts} has {len(read):,} prompts, not {samples:,}", "give a smaller --samples")
    return read[:samples]


def _require(protocol: Protocol, source: str | None) -> None:
    """See that the prompts are the protocol's own."""
    wanted = f"captions_coco14_test.txt of DMD2, sha256 {protocol.captions_sha256}"
    if source is None or not Path(source).is_file():
        raise ConfigError(f"--protocol {protocol.name} has captions of its own", f"give --prompts {wanted}")
    found = hashlib.sha256(Path(source).read_bytes()).hexdigest()
    if found != protocol.captions_sha256:
        raise InputError(f"{source} is not the list of {protocol.name}: sha256 {found}", f"give {wanted}")


def unseen_prompts(base: Base, chosen: ResolvedLora, count: int, seed: int) -> list[str]:
    """Prompts of the base's own that the LoRA was not distilled on, as far as its file says.

    Raises:
        ConfigError: There are not so many.
    """
    said = chosen.lora.recipe.get("teacher", {})
    trained, drawn_for = said.get("trajectories"), said.get("seed")
    seen = set(base.training_prompts(trained, drawn_for)) if trained and drawn_for is not None else set()
    made = dict.fromkeys(p for p in base.training_prompts(SPARE * count, UNSEEN_SEED + seed) if p not in seen)
    if len(made) < count:
        raise ConfigError(f"there are only {len(made):,} prompts that training has not seen", "give --prompts FILE")
    return list(made)[:count]


def _metrics(named: Sequence[str] | None, reference: Reference | None, samples: int, reporter: Reporter) -> list[str]:
    """The metrics that can be computed; what the user named must be among them."""
    fewest = min(samples, reference.count or samples) if reference else samples
    has_features = reference is not None and (reference.statistics is None or reference.statistics.features is not None)
    chosen = []
    for name in named or USUAL:
        metric = PICTURE_METRICS[name]
        lacks_moments = metric.wants_moments and reference is None
        lacks_features = metric.wants_features and not has_features
        if named and (lacks_moments or lacks_features):
            what = "real pictures" if metric.wants_features else "real pictures, or statistics of some"
            raise ConfigError(f"{metric.title} needs {what}", "give --reference DIR, or coco:DIR")
        if lacks_moments or lacks_features:
            continue
        if fewest < metric.least:
            raise ConfigError(f"{metric.title} of {fewest} pictures says nothing", f"give at least {metric.least}")
        chosen.append(name)
    if samples < MANY and {"fid", "kid"} <= set(chosen):
        chosen = [{"fid": "kid", "kid": "fid"}.get(name, name) for name in chosen]
        reporter.say(f"of {samples:,} pictures KID says more than FID, which few pictures raise")
    if left_out := [PICTURE_METRICS[name].title for name in USUAL if not named and name not in chosen]:
        reporter.say(f"{' and '.join(left_out)} need real pictures: give --reference DIR for them")
    return chosen

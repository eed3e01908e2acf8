"""Teacher, undistilled base and student on the same prompts and noise, in numbers with intervals."""

from dataclasses import replace

import torch

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig, from_json
from rapm_cli.evaluate.demo_exam import Examination
from rapm_cli.evaluate.demo_scores import Part
from rapm_cli.evaluate.models import student, teacher_and_base
from rapm_cli.formats.lora import apply_lora
from rapm_cli.metrics.registry import METRICS
from rapm_cli.runs.resolve_lora import ResolvedLora
from rapm_cli.runs.settings import MAX_SAMPLES, MIN_SAMPLES

PARTS = {"held-out": (True,), "seen": (False,), "both": (True, False)}  # is held out


def evaluate_lora(
    chosen: ResolvedLora,
    *,
    samples: int,
    seed: int,
    parts: tuple[bool, ...],
    metrics: list[str],
    device: torch.device,
    precision: str,
    reporter: Reporter,
) -> list[Part]:
    """Score teacher, base and student of a LoRA file on parts of the demo world.

    Args:
        chosen: The base, and the student with the recipe of its teacher.
        samples: Prompts in each part.
        seed: Which prompts and noise.
        parts: For each part, whether its scenes are held out.
        metrics: Names from `METRICS`.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        reporter: Sees the bars.

    Raises:
        ConfigError: There is no such metric, the base has none, or the number of samples is out of range.
    """
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise ConfigError(f"--samples {samples} is out of range", f"give {MIN_SAMPLES} to {MAX_SAMPLES}")
    for name in metrics:
        METRICS[name]
    base, lora = chosen.base, chosen.lora
    if base.set_exam is None:
        raise ConfigError(f"there is no exam for base {base.name}", "use --base demo")
    precision = find_precision(precision, device)
    teacher = replace(_teacher_of(chosen, reporter), precision=precision)
    weights = base.locate(reporter)
    reporter.say(f"loading {base.name}")
    loaded, identity = LoadedBase(weights, device, DTYPES[precision]), weights.identity
    if warning := chosen.warning(weights):
        reporter.warn(warning)
    exams = [Examination(base, loaded, samples, seed, held_out, metrics, reporter) for held_out in parts]
    for exam in exams:  # before the LoRA is attached, so that the times are the bare network's
        for contestant in teacher_and_base(loaded, teacher, identity):
            exam.sit(contestant)
    apply_lora(loaded.backbone, lora, chosen.lora_path)
    for exam in exams:
        exam.sit(student(loaded, teacher, identity, lora))
    return [exam.part() for exam in exams]


def _teacher_of(chosen: ResolvedLora, reporter: Reporter) -> TeacherConfig:
    """The teacher that a LoRA was distilled from; where its file does not say, the one that suits the base."""
    name, path, said = chosen.base.name, chosen.lora_path, chosen.lora.recipe.get("teacher")
    if said is None:
        reporter.warn(f"{path} does not say which teacher it was distilled from: compared with {name}'s usual one")
        return TeacherConfig(base=name, **chosen.teacher)
    try:
        return from_json(TeacherConfig, said)
    except InputError as error:
        raise InputError(
            f"{path} does not say which teacher it was distilled from", "give a file that rapm distill or export wrote"
        ) from error

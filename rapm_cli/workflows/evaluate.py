"""Teacher, undistilled base and student on the same prompts and noise, in numbers with intervals."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases import Base, Exam, LoadedBase, base_identity
from rapm_cli.bases.device import DTYPES, describe_machine, find_precision
from rapm_cli.core.backbone import Conditioning
from rapm_cli.core.config import TeacherConfig, teacher_config_from_json
from rapm_cli.core.errors import ConfigError, InputError
from rapm_cli.core.randomness import generator_for
from rapm_cli.core.sample import sample_student
from rapm_cli.core.schedule import fine_grid, slot_edges
from rapm_cli.core.trajectories import initial_noise, walk_teacher
from rapm_cli.formats.lora import LoraFile, apply_lora
from rapm_cli.formats.tensors import write_tensors
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.registry import METRICS, Readings
from rapm_cli.workflows.places import cache_dir
from rapm_cli.workflows.watch import Watcher

PARTS = {"held-out": (True,), "seen": (False,), "both": (True, False)}  # is held out

Draw = Callable[[Tensor, Conditioning], Tensor]  # noise and conditioning to clean latents
MIN_FRECHET = 640  # pictures, ten for each of the reader's features
CHUNK = 32  # prompts that are drawn, read and cached together


@dataclass(frozen=True)
class Contestant:
    """One way to draw.

    Args:
        role: "teacher", "base" or "student".
        steps: Steps that it takes.
        evaluations: Network evaluations for each picture; guidance doubles them.
        draw: Noise and conditioning to clean latents.
        identity: What makes its pictures, for the cache; empty for those that are not cached.
    """

    role: str
    steps: int
    evaluations: int
    draw: Draw
    identity: str = ""

    @property
    def title(self) -> str:
        """As in tables."""
        return f"{self.role}, {self.steps} steps"


@dataclass(frozen=True)
class Score:
    """One metric of one contestant: the value and a 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One line of the comparison: who, and the seconds and scores of the pictures."""

    contestant: Contestant
    seconds: float
    scores: dict[str, Score]


@dataclass(frozen=True)
class Part:
    """The comparison on one part of the world."""

    name: str
    samples: int
    seed: int
    rows: list[Row]

    def closed(self) -> float | None:
        """(FD_base - FD_student) / (FD_base - FD_teacher): 1 where the student is as near as its teacher.

        None where a row is missing, or where there are too few pictures for a Fréchet distance to mean anything.
        """
        value = {row.contestant.role: row.scores["fd-demo"].value for row in self.rows if "fd-demo" in row.scores}
        is_known = {"teacher", "base", "student"} <= value.keys() and self.samples >= MIN_FRECHET
        if not is_known or value["base"] == value["teacher"]:
            return None
        return (value["base"] - value["student"]) / (value["base"] - value["teacher"])


def teacher_and_base(base: LoadedBase, config: TeacherConfig, identity: str) -> list[Contestant]:
    """The two that a student stands between: the guided teacher on the fine grid, the bare base at N steps."""
    fine = fine_grid(config.num_slots, config.fine_steps, base.backbone.schedule.length)
    coarse = slot_edges(config.num_slots, base.backbone.schedule.length)[::-1]

    def walk(times: list[int], guidance_scale: float) -> Draw:
        def draw(z: Tensor, cond: Conditioning) -> Tensor:
            *_, clean = walk_teacher(base.backbone, z, times, cond, base.unconditional, guidance_scale)
            return clean

        return draw

    evaluations = (len(fine) - 1) * (1 if config.guidance_scale == 1 else 2)
    made_by = f"{identity} {config.precision} {describe_machine(base.backbone.device)}"
    guided, bare = f"{made_by} {fine} guidance {config.guidance_scale}", f"{made_by} {coarse} guidance 1"
    return [
        Contestant("teacher", len(fine) - 1, evaluations, walk(fine, config.guidance_scale), guided),
        Contestant("base", config.num_slots, config.num_slots, walk(coarse, 1.0), bare),
    ]


def student(base: LoadedBase, num_slots: int) -> Contestant:
    """The LoRA that the backbone carries."""
    return Contestant(
        "student",
        num_slots,
        num_slots,
        lambda z, cond: sample_student(base.backbone, z, cond, num_slots)[0],
    )


def evaluate_lora(
    base: Base,
    lora: LoraFile,
    path: Path,
    *,
    samples: int,
    seed: int,
    parts: tuple[bool, ...],
    metrics: list[str],
    device: torch.device,
    precision: str,
    watcher: Watcher,
) -> list[Part]:
    """Score teacher, base and student of a LoRA file on parts of the demo world.

    Args:
        base: The base.
        lora: The student, with the recipe of its teacher.
        path: Where it came from, for messages.
        samples: Prompts in each part.
        seed: Which prompts and noise.
        parts: For each part, whether its scenes are held out.
        metrics: Names from `METRICS`.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        watcher: Sees the bars.
    """
    for name in metrics:
        METRICS[name]
    if base.set_exam is None:
        raise ConfigError(f"rapm eval has no metrics for base {base.name} yet", "use --base demo")
    precision = find_precision(precision, device)
    teacher = replace(_teacher_of(lora, path), precision=precision)
    loaded = base.load(device, DTYPES[precision])
    exams = [Examination(base, loaded, samples, seed, held_out, metrics, watcher) for held_out in parts]
    for exam in exams:  # before the LoRA is attached, so that the times are the bare network's
        for contestant in teacher_and_base(loaded, teacher, base_identity(base)):
            exam.sit(contestant)
    apply_lora(loaded.backbone, lora, path)
    for exam in exams:
        exam.sit(student(loaded, teacher.num_slots))
    return [exam.part() for exam in exams]


def _teacher_of(lora: LoraFile, path: Path) -> TeacherConfig:
    try:
        return teacher_config_from_json(lora.recipe["teacher"])
    except (KeyError, TypeError) as error:
        raise InputError(
            f"{path} does not say which teacher it was distilled from", "give a file that rapm distill or export wrote"
        ) from error


class Examination:
    """Contestants on the same prompts with the same noise, one after the other.

    Args:
        base: A base with an exam.
        loaded: The same, loaded.
        samples: Number of prompts.
        seed: Which prompts and noise.
        held_out: Scenes that no training saw, or the others.
        metrics: Names from `METRICS`.
        watcher: Sees one bar for each contestant.
    """

    def __init__(
        self,
        base: Base,
        loaded: LoadedBase,
        samples: int,
        seed: int,
        held_out: bool,
        metrics: list[str],
        watcher: Watcher,
    ) -> None:
        assert base.set_exam is not None
        self.loaded, self.samples, self.seed, self.held_out = loaded, samples, seed, held_out
        self.metrics, self.watcher, self.set_exam = metrics, watcher, base.set_exam
        self.rows: list[Row] = []

    def part(self) -> Part:
        """The rows so far."""
        name = "held-out scenes" if self.held_out else "scenes seen in training"
        return Part(name, self.samples, self.seed, self.rows)

    def sit(self, contestant: Contestant) -> None:
        """Let a contestant draw, and add its row."""
        readings, seconds = self._readings(contestant)
        scores = {metric: score(readings, metric) for metric in self.metrics}
        self.rows.append(Row(contestant, seconds, scores))

    def _readings(self, contestant: Contestant) -> tuple[Readings, float]:
        """Readings of a contestant's pictures, and the seconds that each picture took."""
        parts, seconds = [], 0.0
        with self.watcher.bar(contestant.title, self.samples, "picture", self.loaded.backbone.device) as bar:
            for start in range(0, self.samples, CHUNK):
                count = min(CHUNK, self.samples - start)
                exam = self.set_exam(start, count, self.seed, self.held_out)
                features, right, spent = self._chunk(contestant, exam, start)
                seconds += spent
                parts.append(Readings(features, right, exam.asked, exam.reference))
                bar.advance(count)
        columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "right", "asked", "reference"))
        return Readings(*columns), seconds / self.samples

    def _chunk(self, contestant: Contestant, exam: Exam, start: int) -> tuple[Tensor, Tensor, float]:
        """Features, right answers and seconds of one chunk, from the cache where its maker may be cached."""
        path = _cached(contestant, self.seed, self.held_out, start, exam.prompts)
        if path is not None and path.is_file():
            return _recall(path)
        indices = list(range(start, start + len(exam.prompts)))
        noise = initial_noise(self.seed, f"exam {int(self.held_out)}", indices, self.loaded.latent_shape)
        begun = time.perf_counter()
        drawn = contestant.draw(noise.to(self.loaded.backbone.device), self.loaded.encode(exam.prompts))
        pictures = self.loaded.decode(drawn)
        spent = time.perf_counter() - begun
        features, right = exam.read(pictures)
        if path is not None:
            _keep(path, features, right, spent)
        return features, right, spent


def score(readings: Readings, name: str) -> Score:
    """A metric's value and interval; the interval keeps to the values that the metric can take."""
    metric = METRICS[name]
    low, high = bootstrap_interval(
        lambda chosen: metric.compute(readings[chosen]),
        len(readings),
        generator_for("bootstrap", name),
        draws=metric.draws,
    )
    return Score(metric.compute(readings), max(low, metric.least), min(high, metric.most))


def _cached(contestant: Contestant, seed: int, held_out: bool, start: int, prompts: list[str]) -> Path | None:
    if not contestant.identity:
        return None
    key = json.dumps([contestant.identity, seed, held_out, start, prompts])
    return cache_dir() / "readings" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _keep(path: Path, features: Tensor, right: Tensor, seconds: float) -> None:
    write_tensors(path, {"features": features, "right": right, "seconds": torch.tensor(seconds)}, {})


def _recall(path: Path) -> tuple[Tensor, Tensor, float]:
    from safetensors.torch import load_file

    stored = load_file(path)
    return stored["features"], stored["right"], float(stored["seconds"])


def to_record(part: Part) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "part": part.name,
        "samples": part.samples,
        "seed": part.seed,
        "closed": part.closed(),
        "rows": [
            {
                "name": row.contestant.title,
                "evaluations": row.contestant.evaluations,
                "seconds_per_picture": round(row.seconds, 4),
                "metrics": {
                    name: {"value": score.value, "low": score.low, "high": score.high}
                    for name, score in row.scores.items()
                },
            }
            for row in part.rows
        ],
    }

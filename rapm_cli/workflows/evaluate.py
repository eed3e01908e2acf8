"""Teacher, undistilled base and student on the same prompts and noise, in numbers with intervals."""

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase, base_identity
from rapm_cli.bases.device import DTYPES, find_precision
from rapm_cli.core.backbone import Conditioning
from rapm_cli.core.config import TeacherConfig, teacher_config_from_json
from rapm_cli.core.errors import ConfigError
from rapm_cli.core.randomness import generator_for
from rapm_cli.core.sample import sample_student
from rapm_cli.core.schedule import fine_grid, slot_edges
from rapm_cli.core.trajectories import initial_noise, walk_teacher
from rapm_cli.formats.lora import LoraFile, apply_lora
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.registry import METRICS, Readings
from rapm_cli.workflows.places import cache_dir
from rapm_cli.workflows.watch import Watcher

PARTS = {"held-out": (True,), "seen": (False,), "both": (True, False)}  # is held out

Draw = Callable[[Tensor, Conditioning], Tensor]  # noise and conditioning to clean latents
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
        """(FD_base - FD_student) / (FD_base - FD_teacher): 1 where the student is as near as its teacher."""
        value = {row.contestant.role: row.scores["fd-demo"].value for row in self.rows if "fd-demo" in row.scores}
        if not {"teacher", "base", "student"} <= value.keys() or value["base"] == value["teacher"]:
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
    guided = f"{identity} {fine} guidance {config.guidance_scale} {config.precision}"
    bare = f"{identity} {coarse} guidance 1 {config.precision}"
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
    loaded = base.load(device, DTYPES[find_precision(precision, device)])
    apply_lora(loaded.backbone, lora, path)
    teacher = teacher_config_from_json(lora.recipe["teacher"])
    contestants = [*teacher_and_base(loaded, teacher, base_identity(base)), student(loaded, teacher.num_slots)]
    return [
        compare(
            base,
            loaded,
            contestants,
            samples=samples,
            seed=seed,
            held_out=held_out,
            metrics=metrics,
            watcher=watcher,
        )
        for held_out in parts
    ]


def compare(
    base: Base,
    loaded: LoadedBase,
    contestants: list[Contestant],
    *,
    samples: int,
    seed: int,
    held_out: bool,
    metrics: list[str],
    watcher: Watcher,
) -> Part:
    """Score every contestant on the same prompts with the same noise.

    Args:
        base: The base, for its exam.
        loaded: The same, loaded.
        contestants: Who draws.
        samples: Number of prompts.
        seed: Which prompts and noise.
        held_out: Scenes that no training saw, or the others.
        metrics: Names from `METRICS`.
        watcher: Sees one bar for each contestant.

    Raises:
        ConfigError: The base has no exam.
    """
    name = "held-out scenes" if held_out else "scenes seen in training"
    rows = []
    for contestant in contestants:
        readings, seconds = _examine(base, loaded, contestant, samples, seed, held_out, watcher)
        scores = {metric: _score(readings, metric) for metric in metrics}
        rows.append(Row(contestant, seconds, scores))
    return Part(name, samples, seed, rows)


def _score(readings: Readings, name: str) -> Score:
    metric = METRICS[name]
    low, high = bootstrap_interval(
        lambda chosen: metric.compute(readings[chosen]),
        len(readings),
        generator_for("bootstrap", name),
        draws=metric.draws,
    )
    return Score(metric.compute(readings), low, high)


def _examine(
    base: Base, loaded: LoadedBase, contestant: Contestant, samples: int, seed: int, held_out: bool, watcher: Watcher
) -> tuple[Readings, float]:
    """Readings of a contestant's pictures, and the seconds that each picture took."""
    if base.set_exam is None:
        raise ConfigError(f"rapm eval has no metrics for base {base.name} yet", "use --base demo")
    parts, seconds = [], 0.0
    with watcher.bar(contestant.title, samples, "picture", loaded.backbone.device) as bar:
        for start in range(0, samples, CHUNK):
            count = min(CHUNK, samples - start)
            exam = base.set_exam(start, count, seed, held_out)
            key = json.dumps([contestant.identity, seed, held_out, start, exam.prompts])
            path = _cached(key) if contestant.identity else None
            if path is None or not path.is_file():
                indices = list(range(start, start + count))
                noise = initial_noise(seed, f"exam {int(held_out)}", indices, loaded.latent_shape)
                begun = time.perf_counter()
                pictures = loaded.decode(contestant.draw(noise.to(loaded.backbone.device), loaded.encode(exam.prompts)))
                spent = time.perf_counter() - begun
                features, right = exam.read(pictures)
                if path is not None:
                    _keep(path, features, right, spent)
            else:
                features, right, spent = _recall(path)
            seconds += spent
            parts.append(Readings(features, right, exam.asked, exam.reference))
            bar.advance(count)
    columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "right", "asked", "reference"))
    return Readings(*columns), seconds / samples


def _cached(key: str) -> Path:
    return cache_dir() / "readings" / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def _keep(path: Path, features: Tensor, right: Tensor, seconds: float) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"features": features, "right": right, "seconds": torch.tensor(seconds)}, path)


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

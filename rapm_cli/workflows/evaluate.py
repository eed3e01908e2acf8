"""Teacher, undistilled base and student on the same prompts and noise, in numbers with intervals."""

import contextlib
import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli.bases import Base, Exam, LoadedBase
from rapm_cli.bases.device import DTYPES, describe_machine, find_precision
from rapm_cli.bases.places import CACHE_FORMAT, readings_dir
from rapm_cli.core.backbone import Conditioning
from rapm_cli.core.commit import commit, read_commit, verify
from rapm_cli.core.config import TeacherConfig, from_json
from rapm_cli.core.errors import ConfigError, DamagedError, InputError
from rapm_cli.core.files import sweep
from rapm_cli.core.randomness import generator_for
from rapm_cli.core.sample import sample_student
from rapm_cli.core.schedule import fine_grid, slot_edges
from rapm_cli.core.trajectories import initial_noise, walk_teacher
from rapm_cli.core.watch import Watcher
from rapm_cli.formats.lora import LoraFile, apply_lora
from rapm_cli.metrics.bootstrap import bootstrap_interval
from rapm_cli.metrics.registry import METRICS, Readings
from rapm_cli.workflows import stop
from rapm_cli.workflows.choose import Chosen
from rapm_cli.workflows.disk import with_retries
from rapm_cli.workflows.lock import locked
from rapm_cli.workflows.settings import MAX_SAMPLES, MIN_SAMPLES

PARTS = {"held-out": (True,), "seen": (False,), "both": (True, False)}  # is held out

Draw = Callable[[Tensor, Conditioning], Tensor]  # noise and conditioning to clean latents
MIN_FRECHET = 640  # pictures, ten for each of the reader's features
READINGS = "readings.safetensors"
CHUNK = 32  # prompts that are drawn, read and cached together


@dataclass(frozen=True)
class Contestant:
    """One way to draw.

    Args:
        role: "teacher", "base" or "student".
        steps: Steps that it takes.
        evaluations: Network evaluations for each picture; guidance doubles them.
        draw: Noise and conditioning to clean latents.
        identity: What makes its pictures, for the cache.
    """

    role: str
    steps: int
    evaluations: int
    draw: Draw
    identity: str

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
    """One line of the comparison: who, the seconds and readings of the pictures, and the scores."""

    contestant: Contestant
    seconds: float
    readings: Readings
    scores: dict[str, Score]


@dataclass(frozen=True)
class Part:
    """The comparison on one part of the world."""

    name: str
    samples: int
    seed: int
    rows: list[Row]

    @cached_property
    def closed(self) -> Score | None:
        """(FD_base - FD_student) / (FD_base - FD_teacher): 1 where the student is as near as its teacher.

        Its interval resamples the prompts of all three together. None where a row is missing, where base and
        teacher are equally far, or where there are too few pictures for a Fréchet distance to mean anything.
        """
        scored = {row.contestant.role: row for row in self.rows if "fd-demo" in row.scores}
        if not {"teacher", "base", "student"} <= scored.keys() or self.samples < MIN_FRECHET:
            return None
        if scored["base"].scores["fd-demo"].value == scored["teacher"].scores["fd-demo"].value:
            return None  # there is no distance to close
        rows = {role: row.readings for role, row in scored.items()}

        def share(chosen: Tensor) -> float:
            distance = {role: METRICS["fd-demo"].compute(readings[chosen]) for role, readings in rows.items()}
            return (distance["base"] - distance["student"]) / (distance["base"] - distance["teacher"])

        draws = METRICS["fd-demo"].draws
        low, high = bootstrap_interval(share, self.samples, generator_for("bootstrap", "closed"), draws=draws)
        return Score(share(torch.arange(self.samples)), low, high)


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
    made_by = _made_by(base, identity, config)
    guided, bare = f"{made_by} {fine} guidance {config.guidance_scale}", f"{made_by} {coarse} guidance 1"
    return [
        Contestant("teacher", len(fine) - 1, evaluations, walk(fine, config.guidance_scale), guided),
        Contestant("base", config.num_slots, config.num_slots, walk(coarse, 1.0), bare),
    ]


def student(base: LoadedBase, config: TeacherConfig, identity: str, lora: LoraFile) -> Contestant:
    """The LoRA that the backbone carries.

    Args:
        base: Loaded, with the LoRA attached.
        config: Of its teacher.
        identity: Of the base's weights.
        lora: The same LoRA, whose digest its pictures are remembered by.
    """
    steps = config.num_slots
    return Contestant(
        "student",
        steps,
        steps,
        lambda z, cond: sample_student(base.backbone, z, cond, steps)[0],
        f"{_made_by(base, identity, config)} student {steps} {lora.digest()}",
    )


def _made_by(base: LoadedBase, identity: str, config: TeacherConfig) -> str:
    return f"{identity} {config.precision} {describe_machine(base.backbone.device)} format {CACHE_FORMAT}"


def evaluate_lora(
    chosen: Chosen,
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
        chosen: The base, and the student with the recipe of its teacher.
        samples: Prompts in each part.
        seed: Which prompts and noise.
        parts: For each part, whether its scenes are held out.
        metrics: Names from `METRICS`.
        device: Where to compute.
        precision: "auto", "fp32", "bf16" or "fp16".
        watcher: Sees the bars.

    Raises:
        ConfigError: There is no such metric, the base has none, or the number of samples is out of range.
    """
    if not MIN_SAMPLES <= samples <= MAX_SAMPLES:
        raise ConfigError(f"--samples {samples} is out of range", f"give {MIN_SAMPLES} to {MAX_SAMPLES}")
    for name in metrics:
        METRICS[name]
    base, lora = chosen.base, chosen.lora
    if base.set_exam is None:
        raise ConfigError(f"rapm eval has no metrics for base {base.name} yet", "use --base demo")
    precision = find_precision(precision, device)
    teacher = replace(_teacher_of(chosen, watcher), precision=precision)
    weights = base.locate(watcher)
    watcher.say(f"loading {base.name}")
    loaded, identity = LoadedBase(weights, device, DTYPES[precision]), weights.identity
    if doubt := chosen.doubt(weights):
        watcher.warn(doubt)
    exams = [Examination(base, loaded, samples, seed, held_out, metrics, watcher) for held_out in parts]
    for exam in exams:  # before the LoRA is attached, so that the times are the bare network's
        for contestant in teacher_and_base(loaded, teacher, identity):
            exam.sit(contestant)
    apply_lora(loaded.backbone, lora, chosen.lora_path)
    for exam in exams:
        exam.sit(student(loaded, teacher, identity, lora))
    return [exam.part() for exam in exams]


def _teacher_of(chosen: Chosen, watcher: Watcher) -> TeacherConfig:
    """The teacher that a LoRA was distilled from; where its file does not say, the one that suits the base."""
    name, path, said = chosen.base.name, chosen.lora_path, chosen.lora.recipe.get("teacher")
    if said is None:
        watcher.warn(f"{path} does not say which teacher it was distilled from: compared with {name}'s usual one")
        return TeacherConfig(base=name, **chosen.teacher)
    try:
        return from_json(TeacherConfig, said)
    except InputError as error:
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
        is_strict: Stop at a damaged reading instead of drawing its pictures again.
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
        *,
        is_strict: bool = False,
    ) -> None:
        assert base.set_exam is not None
        sweep(readings_dir())
        self.loaded, self.samples, self.seed, self.held_out = loaded, samples, seed, held_out
        self.metrics, self.watcher, self.set_exam, self.is_strict = metrics, watcher, base.set_exam, is_strict
        self.name = "held-out scenes" if held_out else "scenes that training may see"
        self._sat: list[tuple[Contestant, Readings, float]] = []
        self._exams: dict[int, Exam] = {}  # by their first question

    def part(self) -> Part:
        """The scores of all contestants."""
        self.watcher.say(f"scoring {self.name}, with intervals")
        rows = [
            Row(contestant, seconds, readings, {metric: score(readings, metric) for metric in self.metrics})
            for contestant, readings, seconds in self._sat
        ]
        return Part(self.name, self.samples, self.seed, rows)

    def sit(self, contestant: Contestant) -> None:
        """Let a contestant draw."""
        self._sat.append((contestant, *self._readings(contestant)))

    def _readings(self, contestant: Contestant) -> tuple[Readings, float]:
        """Readings of a contestant's pictures, and the seconds that each picture took."""
        exams = {start: self._exam(start) for start in range(0, self.samples, CHUNK)}
        places = {start: self._place(contestant, exam, start) for start, exam in exams.items()}
        chunks = {start: chunk for start, place in places.items() if (chunk := self._recall(place))}
        if remembered := sum(len(exams[start].prompts) for start in chunks):
            self.watcher.say(
                f"{contestant.title}: {remembered} of {self.samples} {self.name} were drawn and timed before"
            )
        if remembered < self.samples:
            self._draw_rest(contestant, exams, places, chunks, remembered)
        parts = [
            Readings(chunks[start]["features"], chunks[start]["right"], exam.asked, exam.reference)
            for start, exam in exams.items()
        ]
        columns = (torch.cat([getattr(p, name) for p in parts]) for name in ("features", "right", "asked", "reference"))
        return Readings(*columns), sum(float(chunk["seconds"]) for chunk in chunks.values()) / self.samples

    def _draw_rest(
        self,
        contestant: Contestant,
        exams: dict[int, Exam],
        places: dict[int, Path],
        chunks: dict[int, dict[str, Tensor]],
        done: int,
    ) -> None:
        """Add the chunks that are not there, and keep each."""
        bar = self.watcher.bar(contestant.title, self.samples, "picture", self.loaded.device, done=done)
        with bar as shown, stop.patient(f"these {CHUNK} pictures"):
            for start in sorted(exams.keys() - chunks.keys()):
                chunks[start] = self._draw(contestant, exams[start], start)
                self._keep(places[start], chunks[start])
                shown.advance(len(exams[start].prompts), note=self.name)
                stop.check(f"what was drawn by the {contestant.role} is kept", "go on with: the same command")

    def _exam(self, start: int) -> Exam:
        if start not in self._exams:
            count = min(CHUNK, self.samples - start)
            self._exams[start] = self.set_exam(start, count, self.seed, self.held_out)
        return self._exams[start]

    def _draw(self, contestant: Contestant, exam: Exam, start: int) -> dict[str, Tensor]:
        """Features, right answers and seconds of one chunk."""
        indices = list(range(start, start + len(exam.prompts)))
        noise = initial_noise(self.seed, f"exam {int(self.held_out)}", indices, self.loaded.latent_shape)
        begun = time.perf_counter()
        drawn = contestant.draw(noise.to(self.loaded.device), self.loaded.encode(exam.prompts).to(self.loaded.device))
        pictures = self.loaded.decode(drawn)
        spent = time.perf_counter() - begun
        features, right = exam.read(pictures)
        return {"features": features, "right": right, "seconds": torch.tensor(spent)}

    def _place(self, contestant: Contestant, exam: Exam, start: int) -> Path:
        key = json.dumps([contestant.identity, self.seed, self.held_out, start, exam.prompts])
        return readings_dir() / hashlib.sha256(key.encode()).hexdigest()[:24]

    def _recall(self, path: Path) -> dict[str, Tensor] | None:
        """A chunk that was drawn before; None where there is none, or it is damaged."""
        from safetensors.torch import load

        if not path.exists():
            return None
        try:
            stored: dict[str, Tensor] = load(read_commit(path, path.name)[1][READINGS])
            return stored
        except DamagedError as error:
            if self.is_strict:
                raise
            self.watcher.warn(f"{error.message}; drawing its pictures again")
            return None

    def _keep(self, path: Path, chunk: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        data, remedy = save(chunk), "free space, and run the same command again"

        def write() -> None:
            with locked(readings_dir(), self.watcher, "Ctrl-C leaves", is_patient=True):  # another may read the same
                if not _is_sound(path):
                    commit(path, {READINGS: data}, fingerprint=path.name)

        with_retries(write, path, len(data), self.watcher, "what was drawn before is kept", remedy)


def _is_sound(path: Path) -> bool:
    with contextlib.suppress(DamagedError):
        verify(path, path.name)
        return True
    return False


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


def to_record(part: Part) -> dict[str, Any]:
    """A comparison as JSON values."""
    return {
        "part": part.name,
        "samples": part.samples,
        "seed": part.seed,
        "closed": asdict(part.closed) if part.closed else None,
        "rows": [
            {
                "name": row.contestant.title,
                "evaluations": row.contestant.evaluations,
                "seconds_per_picture": round(row.seconds, 4),
                "metrics": {name: asdict(score) for name, score in row.scores.items()},
            }
            for row in part.rows
        ],
    }

"""Contestants on the same prompts with the same noise; what the reader saw in each picture is kept."""

import contextlib
import hashlib
import json
import os
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases import Base, Exam, LoadedBase
from rapm_cli.bases.places import readings_dir
from rapm_cli.core.common.errors import DamagedError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.trajectories import initial_noise
from rapm_cli.core.storage.commit import commit, read_commit, verify
from rapm_cli.core.storage.files import sweep
from rapm_cli.evaluate.demo_scores import Part, Row, score
from rapm_cli.evaluate.models import EvalModel
from rapm_cli.metrics.registry import Readings
from rapm_cli.runs import signals
from rapm_cli.runs.lock import locked
from rapm_cli.runs.retry import with_retries

READINGS = "readings.safetensors"
CHUNK = 32  # prompts that are drawn, read and cached together


class Examination:
    """Contestants on the same prompts with the same noise, one after the other.

    Args:
        base: A base with an exam.
        loaded: The same, loaded.
        samples: Number of prompts.
        seed: Which prompts and noise.
        held_out: Scenes that no training saw, or the others.
        metrics: Names from `METRICS`.
        reporter: Sees one bar for each contestant.
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
        reporter: Reporter,
        *,
        is_strict: bool = False,
    ) -> None:
        assert base.set_exam is not None
        sweep(readings_dir())
        self.loaded, self.samples, self.seed, self.held_out = loaded, samples, seed, held_out
        self.metrics, self.reporter, self.set_exam, self.is_strict = metrics, reporter, base.set_exam, is_strict
        self.name = "held-out scenes" if held_out else "scenes that training may see"
        self._sat: list[tuple[EvalModel, Readings, float]] = []
        self._exams: dict[int, Exam] = {}  # by their first question

    def part(self) -> Part:
        """The scores of all contestants."""
        self.reporter.say(f"scoring {self.name}, with intervals")
        rows = [
            Row(contestant, seconds, readings, {metric: score(readings, metric) for metric in self.metrics})
            for contestant, readings, seconds in self._sat
        ]
        return Part(self.name, self.samples, self.seed, rows)

    def sit(self, contestant: EvalModel) -> None:
        """Let a contestant draw."""
        self._sat.append((contestant, *self.readings(contestant)))

    def readings(self, contestant: EvalModel) -> tuple[Readings, float]:
        """Readings of a contestant's pictures, and the seconds that each picture took."""
        exams = {start: self._exam(start) for start in range(0, self.samples, CHUNK)}
        places = {start: self._place(contestant, exam, start) for start, exam in exams.items()}
        chunks = {start: chunk for start, place in places.items() if (chunk := self._recall(place))}
        if remembered := sum(len(exams[start].prompts) for start in chunks):
            self.reporter.say(
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
        contestant: EvalModel,
        exams: dict[int, Exam],
        places: dict[int, Path],
        chunks: dict[int, dict[str, Tensor]],
        done: int,
    ) -> None:
        """Add the chunks that are not there, and keep each; in an order of chance, so that several processes share."""
        left = sorted(exams.keys() - chunks.keys())
        random.Random(os.getpid()).shuffle(left)
        bar = self.reporter.bar(contestant.title, self.samples, "picture", self.loaded.device, done=done)
        with bar as shown, signals.deferred(f"these {CHUNK} pictures"):
            for start in left:
                if chunk := self._recall(places[start]):  # by now
                    chunks[start] = chunk
                else:
                    chunks[start] = self._draw(contestant, exams[start], start)
                    self._keep(places[start], chunks[start])
                shown.advance(len(exams[start].prompts), note=self.name)
                signals.check(f"what was drawn by the {contestant.role} is kept", "resume with: the same command")

    def _exam(self, start: int) -> Exam:
        if start not in self._exams:
            count = min(CHUNK, self.samples - start)
            self._exams[start] = self.set_exam(start, count, self.seed, self.held_out)
        return self._exams[start]

    def _draw(self, contestant: EvalModel, exam: Exam, start: int) -> dict[str, Tensor]:
        """Features, right answers and seconds of one chunk."""
        indices = list(range(start, start + len(exam.prompts)))
        noise = initial_noise(self.seed, f"exam {int(self.held_out)}", indices, self.loaded.latent_shape)
        begun = time.perf_counter()
        drawn = contestant.draw(noise.to(self.loaded.device), self.loaded.encode(exam.prompts).to(self.loaded.device))
        pictures = self.loaded.decode(drawn)
        spent = time.perf_counter() - begun
        features, right = exam.read(pictures)
        return {"features": features, "right": right, "seconds": torch.tensor(spent)}

    def _place(self, contestant: EvalModel, exam: Exam, start: int) -> Path:
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
            self.reporter.warn(f"{error.message}; drawing its pictures again")
            return None

    def _keep(self, path: Path, chunk: dict[str, Tensor]) -> None:
        from safetensors.torch import save

        data, remedy = save(chunk), "free space, and run the same command again"

        def write() -> None:
            with locked(readings_dir(), self.reporter, "Ctrl-C leaves", is_patient=True):  # another may read the same
                if not _is_sound(path):
                    commit(path, {READINGS: data}, fingerprint=path.name)

        with_retries(write, path, len(data), self.reporter, "what was drawn before is kept", remedy)


def _is_sound(path: Path) -> bool:
    with contextlib.suppress(DamagedError):
        verify(path, path.name)
        return True
    return False

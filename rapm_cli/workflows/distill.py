"""Trajectories, training, comparison: a base model to a few-step LoRA in a run folder."""

import dataclasses
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rapm_cli import __version__
from rapm_cli.bases import Base, LoadedBase, base_identity
from rapm_cli.bases.device import DTYPES, describe_machine, peak_memory_mib
from rapm_cli.core.config import TeacherConfig, TrainConfig, to_json
from rapm_cli.core.schedule import sampler_recipe
from rapm_cli.core.student import lora_state
from rapm_cli.core.train import Progress, SlotLosses, Trainer, check_fit, train
from rapm_cli.core.trajectories import initial_noise
from rapm_cli.formats.lora import LoraFile, save_lora
from rapm_cli.workflows.collect import collect, training_prompts
from rapm_cli.workflows.evaluate import Contestant, Examination, Part, student, teacher_and_base, to_record
from rapm_cli.workflows.pictures import contact_sheet
from rapm_cli.workflows.prompts import warn_of_unread
from rapm_cli.workflows.rundir import CONFIG, RESULT, Run, new_run
from rapm_cli.workflows.watch import Watcher

SHEET_COLUMNS = 8
QUICK_METRICS = ["attributes", "pictures", "kd-demo"]  # a Fréchet distance wants ten times more pictures


@dataclass(frozen=True)
class Distilled:
    """What a distillation leaves.

    Args:
        run: Its folder.
        part: Comparison on held-out prompts; None where the base has no exam, or none was wanted.
        seconds: Seconds of each phase.
        peak_mib: Most memory used.
        machine: The device in words.
    """

    run: Run
    part: Part | None
    seconds: dict[str, float]
    peak_mib: float
    machine: str


def distill(
    base: Base,
    teacher: TeacherConfig,
    training: TrainConfig,
    *,
    device: torch.device,
    prompts: list[str] | None,
    output: Path | None,
    samples: int,
    watcher: Watcher,
) -> Distilled:
    """Run a whole distillation.

    Args:
        base: The base model.
        teacher: Settings of phase 1.
        training: Settings of phase 2.
        device: Where to compute.
        prompts: The user's prompts, or None for the base's own.
        output: Run folder, or None for a new one among all runs.
        samples: Held-out prompts in the comparison at the end; 0 for none.
        watcher: Sees bars and talk.
    """
    check_fit(training, teacher.num_slots)
    chosen = training_prompts(base, teacher, prompts)
    clock = _Clock()
    watcher.say(f"loading {base.name}")
    loaded = base.load(device, DTYPES[teacher.precision])
    clock.lap("loading")
    warn_of_unread(loaded, chosen, watcher)
    run, identity = new_run(base.name, output), base_identity(base)
    run.write(CONFIG, _record(base, teacher, training))
    trajectories = collect(loaded, teacher, chosen, base.defaults.rollout_batch, identity, watcher)
    clock.lap("trajectories")
    exam, sheet = None, Sheet(base, loaded, teacher.seed, chosen)
    if samples and base.set_exam:
        exam = Examination(base, loaded, samples, teacher.seed, True, QUICK_METRICS, watcher)
    for contestant in teacher_and_base(loaded, teacher, identity):
        sheet.draw(contestant)
        if exam:
            exam.sit(contestant)
    clock.lap("teacher and base")
    trainer = Trainer(
        loaded.backbone,
        training,
        num_slots=teacher.num_slots,
        fine_steps=teacher.fine_steps,
        delta=teacher.delta,
    )
    with watcher.bar("training", training.iterations, "iteration", device) as bar:
        for progress in train(trainer, trajectories):
            run.append(_log_line(progress))
            bar.advance(note=_note(progress.slots))
    recipe = _record(base, teacher, training) | {"sampler": sampler_recipe(teacher.num_slots)}
    save_lora(run.lora, LoraFile(lora_state(loaded.backbone), training.rank, training.alpha, recipe))
    clock.lap("training")
    contestant = student(loaded, teacher.num_slots)
    sheet.draw(contestant)
    sheet.save(run.sheet)
    if exam:
        exam.sit(contestant)
    clock.lap("student")
    part = exam.part() if exam else None
    result = Distilled(run, part, clock.laps, peak_memory_mib(device), describe_machine(device))
    record: dict[str, Any] = {"seconds": clock.laps, "peak_mib": result.peak_mib, "machine": result.machine}
    run.write(RESULT, record | {"comparison": to_record(part) if part else None})
    return result


class Sheet:
    """A contact sheet: one row for each contestant, the same prompts and noise in every row.

    A base with an exam shows prompts that no training saw.
    """

    def __init__(self, base: Base, loaded: LoadedBase, seed: int, prompts: list[str]) -> None:
        shown = base.set_exam(0, SHEET_COLUMNS, seed, True).prompts if base.set_exam else prompts[:SHEET_COLUMNS]
        noise = initial_noise(seed, "sheet", list(range(len(shown))), loaded.latent_shape)
        self._noise, self._cond = noise.to(loaded.backbone.device), loaded.encode(shown)
        self._decode, self._batch = loaded.decode, base.defaults.picture_batch
        self._rows: dict[str, Tensor] = {}

    def draw(self, contestant: Contestant) -> None:
        """Add a contestant's row."""
        size = self._batch
        latents = [
            contestant.draw(self._noise[k : k + size], self._cond[k : k + size])
            for k in range(0, len(self._noise), size)
        ]
        title = f"{contestant.title}, {contestant.evaluations} evaluations"
        self._rows[title] = torch.cat([self._decode(part) for part in latents])

    def save(self, path: Path) -> None:
        """Write the sheet as a PNG."""
        contact_sheet(self._rows).save(path)


class _Clock:
    """Seconds of each phase."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = round(now - self._last, 2), now


def _record(base: Base, teacher: TeacherConfig, training: TrainConfig) -> dict[str, Any]:
    return {
        "rapm": __version__,
        "base": base.name,
        "base_identity": base_identity(base),
        "teacher": to_json(teacher),
        "training": to_json(training),
    }


def _log_line(progress: Progress) -> dict[str, Any]:
    slots = [dataclasses.asdict(slot) for slot in progress.slots]
    return {"iteration": progress.iteration, "learning_rate": progress.learning_rate, "slots": slots}


def _note(slots: list[SlotLosses]) -> str:
    """Distance to both targets in each slot, the noisiest first, and the mean of the discriminators' losses."""
    relative = " ".join(f"{slot.relative:.3f}" for slot in slots)
    absolute = " ".join(f"{slot.absolute:.3f}" for slot in slots)
    judged = [value for slot in slots for value in slot.discriminator.values()]
    end = f"  discriminators {math.fsum(judged) / len(judged):.2f}" if judged else ""
    return f"slots: relative {relative}  absolute {absolute}{end}"

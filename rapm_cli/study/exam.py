"""The exam of a study: everybody on the same prompts and noise, each with a base of their own, freshly loaded."""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.bases import Base, LoadedBase
from rapm_cli.bases.device import DTYPES
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.config import TeacherConfig
from rapm_cli.core.method.samplers import SAMPLERS
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.evaluate.contact_sheet import COLUMNS, draw_row, fixed_scenes
from rapm_cli.evaluate.demo_exam import Examination
from rapm_cli.evaluate.models import EvalModel, few_steps, renoised, student, teacher_and_base
from rapm_cli.formats.lora import apply_lora, load_lora
from rapm_cli.metrics.registry import Readings


@dataclass(frozen=True)
class Sat:
    """What an exam has found of one contestant.

    Args:
        evaluations: Of the network for each picture.
        readings: What was read in the pictures.
        seconds: Of each picture.
        parameters: Of its LoRA; 0 where it has none.
        pictures: Its row of the contact sheet, (B, 3, H, W) in [0, 1]; None where none was wanted.
    """

    evaluations: int
    readings: Readings
    seconds: float
    parameters: int = 0
    pictures: Tensor | None = None


class StudyExam:
    """One exam that many sit, between which a base's memory is free for training.

    Args:
        base: A base with an exam.
        identity: Of its weights.
        device: Where to compute.
        samples: Prompts.
        seed: Which prompts and noise.
        held_out: Whether no training saw their scenes.
        reporter: Sees a bar for each contestant.
    """

    def __init__(
        self,
        base: Base,
        identity: str,
        device: torch.device,
        samples: int,
        seed: int,
        held_out: bool,
        reporter: Reporter,
    ) -> None:
        assert base.set_exam is not None
        self._base = dataclasses.replace(base, set_exam=functools.cache(base.set_exam))  # its drawings take long
        self._identity, self._device, self._reporter = identity, device, reporter
        self.samples, self.seed, self._held_out = samples, seed, held_out
        self._scenes: tuple[Tensor, Conditioning] | None = None

    def undistilled(self, config: TeacherConfig) -> list[Sat]:
        """The teacher of these settings, and the bare base at as many steps as its student takes; both drawn."""
        loaded = self._load(config)
        return [self._sit(loaded, who, is_drawn=True) for who in teacher_and_base(loaded, config, self._identity)]

    def bare(self, config: TeacherConfig, steps: int, guidance_scale: float, sampler: str) -> Sat:
        """The network that nothing was distilled into, at few steps; drawn."""
        loaded = self._load(config)
        walker = SAMPLERS[sampler]
        who = (
            renoised(loaded, config, self._identity, steps, walker)
            if walker.is_renoised
            else few_steps(loaded, config, self._identity, steps, guidance_scale)
        )
        return self._sit(loaded, who, is_drawn=True)

    def student(self, config: TeacherConfig, path: Path, *, is_drawn: bool = False) -> Sat:
        """The student of a LoRA file.

        Args:
            config: Of its own teacher.
            path: The file.
            is_drawn: Whether it is shown on the contact sheet.
        """
        loaded, lora = self._load(config), load_lora(path)
        apply_lora(loaded.backbone, lora, path)
        sat = self._sit(loaded, student(loaded, config, self._identity, lora), is_drawn=is_drawn)
        return dataclasses.replace(sat, parameters=sum(value.numel() for value in lora.state.values()))

    def _sit(self, loaded: LoadedBase, contestant: EvalModel, *, is_drawn: bool) -> Sat:
        exam = Examination(self._base, loaded, self.samples, self.seed, self._held_out, [], self._reporter)
        readings, seconds = exam.readings(contestant)
        pictures = None
        if is_drawn:
            self._scenes = self._scenes or fixed_scenes(self._base, loaded, self.seed, [], COLUMNS)
            pictures = draw_row(contestant, loaded, self._scenes, self._base.defaults.picture_batch)
        return Sat(contestant.evaluations, readings, seconds, pictures=pictures)

    def _load(self, config: TeacherConfig) -> LoadedBase:
        return LoadedBase(self._base.locate(self._reporter), self._device, DTYPES[config.precision])

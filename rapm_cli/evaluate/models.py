"""Models in an evaluation: the guided teacher, the undistilled base, and the student."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from rapm_cli.bases import LoadedBase
from rapm_cli.bases.device import describe_machine
from rapm_cli.bases.places import CACHE_FORMAT
from rapm_cli.core.method.config import TeacherConfig
from rapm_cli.core.method.samplers import Sampler, sample_student
from rapm_cli.core.method.trajectories import walk_teacher
from rapm_cli.core.network.backbone import Conditioning
from rapm_cli.core.network.schedule import fine_grid, slot_edges
from rapm_cli.formats.lora import LoraFile

TEACHER, BASE, STUDENT = "teacher", "base", "student"  # roles
CONTROL = "teacher's other noise"  # role of the teacher's samples with other noise, which metrics should find alike
SampleFunction = Callable[[Tensor, Conditioning], list[Tensor]]  # noise and conditioning to positions, clean first


@dataclass(frozen=True)
class EvalModel:
    """One way to sample.

    Args:
        role: `TEACHER`, `BASE`, `STUDENT` or `CONTROL`.
        steps: Number of sampling steps.
        evaluations: Network evaluations for each image; guidance doubles them.
        sample: (B, C, h, w) noise and conditioning to a list of latents: `[0]` is clean, the last is the noise. Those
            between are at the student's slot edges; a base with other steps has its own times.
        identity: Text that identifies its images in caches.
        parameters: Number of LoRA parameters; 0 without a LoRA.
    """

    role: str
    steps: int
    evaluations: int
    sample: SampleFunction
    identity: str
    parameters: int = 0

    @property
    def title(self) -> str:
        """Name in tables."""
        return f"{self.role}, {self.steps} steps"


def teacher_and_base(base: LoadedBase, config: TeacherConfig, identity: str) -> list[EvalModel]:
    """Return the guided teacher on the fine grid, and the unguided base with the student's N steps.

    Args:
        base: Loaded base without a LoRA.
        config: Settings of the teacher.
        identity: Identity of the base's weights.
    """
    fine = fine_grid(config.num_slots, config.fine_steps, base.backbone.schedule.length)
    return [
        _undistilled(TEACHER, base, config, identity, fine, config.guidance_scale, stride=config.fine_steps),
        few_steps(base, config, identity, config.num_slots, 1),
    ]


def few_steps(base: LoadedBase, config: TeacherConfig, identity: str, steps: int, guidance_scale: float) -> EvalModel:
    """Return the undistilled base with `steps` steps; guidance doubles its evaluations."""
    coarse = slot_edges(steps, base.backbone.schedule.length)[::-1]
    return _undistilled(BASE, base, config, identity, coarse, guidance_scale)


def renoised(base: LoadedBase, config: TeacherConfig, identity: str, steps: int, sampler: Sampler) -> EvalModel:
    """Return the undistilled base, sampled with new noise after each step."""
    recipe = sampler.recipe(steps)
    made_by = f"{_made_by(base, identity, config)} bare {recipe}"
    return EvalModel(
        BASE, steps, steps, lambda z, cond: sample_student(base.backbone.teacher, z, cond, steps, sampler), made_by
    )


def _undistilled(
    role: str,
    base: LoadedBase,
    config: TeacherConfig,
    identity: str,
    times: list[int],
    guidance_scale: float,
    stride: int = 1,
) -> EvalModel:
    """Return the base at `times`; every `stride`-th position is a slot edge."""

    def sample(z: Tensor, cond: Conditioning) -> list[Tensor]:
        return list(walk_teacher(base.backbone.teacher, z, times, cond, base.unconditional, guidance_scale))[::-stride]

    steps, made_by = len(times) - 1, _made_by(base, identity, config)
    evaluations = steps * (1 if guidance_scale == 1 else 2)
    return EvalModel(role, steps, evaluations, sample, f"{made_by} {times} guidance {guidance_scale}")


def student(base: LoadedBase, config: TeacherConfig, identity: str, lora: LoraFile) -> EvalModel:
    """Return the student.

    Args:
        base: Loaded base with the LoRA attached.
        config: Settings of its teacher.
        identity: Identity of the base's weights.
        lora: The same LoRA; its digest identifies the images.
    """
    steps, new_noise = config.num_slots, f" {lora.sampler.recipe(config.num_slots)}" if lora.sampler.is_renoised else ""
    return EvalModel(
        STUDENT,
        steps,
        steps,
        lambda z, cond: sample_student(base.backbone.student, z, cond, steps, lora.sampler),
        f"{_made_by(base, identity, config)} student {steps} {lora.digest()}{new_noise}",
        sum(value.numel() for value in lora.state.values()),
    )


def _made_by(base: LoadedBase, identity: str, config: TeacherConfig) -> str:
    return f"{identity} {config.precision} {describe_machine(base.backbone.device)} format {CACHE_FORMAT}"

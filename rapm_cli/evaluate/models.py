"""Who draws in a comparison: the guided teacher, the bare base, the student."""

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

Walk = Callable[[Tensor, Conditioning], list[Tensor]]  # noise and conditioning to positions, the clean one first


@dataclass(frozen=True)
class EvalModel:
    """One way to draw.

    Args:
        role: "teacher", "base" or "student".
        steps: Steps that it takes.
        evaluations: Network evaluations for each picture; guidance doubles them.
        walk: Noise and conditioning to latents at the student's slot edges, `[0]` clean, the last the noise; of who
            takes other steps at their times.
        identity: What makes its pictures, for the cache.
    """

    role: str
    steps: int
    evaluations: int
    walk: Walk
    identity: str

    def draw(self, z: Tensor, cond: Conditioning) -> Tensor:
        """(B, C, h, w) noise to clean latents."""
        return self.walk(z, cond)[0]

    @property
    def title(self) -> str:
        """As in tables."""
        return f"{self.role}, {self.steps} steps"


def teacher_and_base(base: LoadedBase, config: TeacherConfig, identity: str) -> list[EvalModel]:
    """The two that a student stands between: the guided teacher on the fine grid, the bare base at N steps."""
    fine = fine_grid(config.num_slots, config.fine_steps, base.backbone.schedule.length)
    return [
        _undistilled("teacher", base, config, identity, fine, config.guidance_scale, apart=config.fine_steps),
        few_steps(base, config, identity, config.num_slots, 1),
    ]


def few_steps(base: LoadedBase, config: TeacherConfig, identity: str, steps: int, guidance_scale: float) -> EvalModel:
    """The network that nothing was distilled into, at so many steps; guidance doubles its evaluations."""
    coarse = slot_edges(steps, base.backbone.schedule.length)[::-1]
    return _undistilled("base", base, config, identity, coarse, guidance_scale)


def renoised(base: LoadedBase, config: TeacherConfig, identity: str, steps: int, sampler: Sampler) -> EvalModel:
    """The network that nothing was distilled into, sampled with new noise after each step."""
    recipe = sampler.recipe(steps)
    made_by = f"{_made_by(base, identity, config)} bare {recipe}"
    return EvalModel(
        "base", steps, steps, lambda z, cond: sample_student(base.backbone.teacher, z, cond, steps, sampler), made_by
    )


def _undistilled(
    role: str,
    base: LoadedBase,
    config: TeacherConfig,
    identity: str,
    times: list[int],
    guidance_scale: float,
    apart: int = 1,
) -> EvalModel:
    """Its edges are so many of its steps apart."""

    def walk(z: Tensor, cond: Conditioning) -> list[Tensor]:
        return list(walk_teacher(base.backbone.teacher, z, times, cond, base.unconditional, guidance_scale))[::-apart]

    steps, made_by = len(times) - 1, _made_by(base, identity, config)
    evaluations = steps * (1 if guidance_scale == 1 else 2)
    return EvalModel(role, steps, evaluations, walk, f"{made_by} {times} guidance {guidance_scale}")


def student(base: LoadedBase, config: TeacherConfig, identity: str, lora: LoraFile) -> EvalModel:
    """The LoRA that the backbone carries.

    Args:
        base: Loaded, with the LoRA attached.
        config: Of its teacher.
        identity: Of the base's weights.
        lora: The same LoRA, whose digest its pictures are remembered by.
    """
    steps, renoised = config.num_slots, f" {lora.sampler.recipe(config.num_slots)}" if lora.sampler.is_renoised else ""
    return EvalModel(
        "student",
        steps,
        steps,
        lambda z, cond: sample_student(base.backbone.student, z, cond, steps, lora.sampler),
        f"{_made_by(base, identity, config)} student {steps} {lora.digest()}{renoised}",
    )


def _made_by(base: LoadedBase, identity: str, config: TeacherConfig) -> str:
    return f"{identity} {config.precision} {describe_machine(base.backbone.device)} format {CACHE_FORMAT}"

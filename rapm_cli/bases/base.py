"""The interface of a base model, and the registry of bases with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry


@dataclass(frozen=True, kw_only=True)
class Defaults:
    """Default settings of `rapm distill` for a base."""

    guidance_scale: float
    fine_steps: int
    trajectories: int
    rank: int
    iterations: int
    batch_size: int
    learning_rate: float
    discriminator_learning_rate: float
    warmup: int
    save_every: int  # iterations between checkpoints
    rollout_batch: int  # prompts in one batch of the teacher
    picture_batch: int  # images sampled and decoded in one batch


@dataclass(frozen=True)
class Exam:
    """Prompts with known correct images.

    Args:
        prompts: N prompts.
        asked: (N, A) bool, True if the prompt asks for the attribute.
        reference: (N, D) float32 features of correct images of these prompts.
        read: Function from (N, 3, H, W) images of these prompts to (N, D) features and (N, A) bool, True if the
            attribute is correct.
    """

    prompts: list[str]
    asked: Tensor
    reference: Tensor
    read: Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model that can be loaded.

    Args:
        name: Registered name, or name of the folder; written into every file that leaves the machine.
        source: Value of `--base` that finds the base again on this machine.
        defaults: Default settings of a distillation.
        locate: Function that returns the files and downloads missing ones.
        architecture: Function that returns the shapes; it downloads configurations at most.
        training_prompts: Function (count, seed) -> prompts.
        student: Distilled LoRA that ships with the base, or None.
        set_exam: Function (start, count, seed, held_out) -> prompts with known images; None if the base has none.
        warn: Function from a prompt to a warning about words that the base does not know, or an empty string.
    """

    name: str
    source: str
    defaults: Defaults
    locate: Callable[[Reporter], Weights]
    architecture: Callable[[Reporter], Architecture]
    training_prompts: Callable[[int, int], list[str]]
    student: Path | None = None
    set_exam: Callable[[int, int, int, bool], Exam] | None = None
    warn: Callable[[str], str] = lambda prompt: ""


BASES: Registry[Base] = Registry("base")

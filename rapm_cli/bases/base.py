"""What a base model is to the rest of rapm, and the registry of those that have a name."""

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
    """Settings that suit a base; `rapm distill` starts from them."""

    guidance_scale: float
    fine_steps: int
    trajectories: int
    rank: int
    iterations: int
    batch_size: int
    learning_rate: float
    discriminator_learning_rate: float
    warmup: int
    checkpoint_every: int  # iterations between commits
    rollout_batch: int  # prompts that the teacher draws at once
    picture_batch: int  # pictures sampled and decoded at once


@dataclass(frozen=True)
class LabelledPrompts:
    """N prompts with labels: what their images must show.

    Args:
        prompts: N prompts.
        labels: (N, A) int64 class of each attribute in a true image.
        asked: (N, A) bool, True if a prompt asks for that attribute.
        true_images: Range of prompt numbers to (B, 3, H, W) true images in [0, 1].
        reader: Name of the extractor that reads the attributes from an image.
    """

    prompts: list[str]
    labels: Tensor
    asked: Tensor
    true_images: Callable[[range], Tensor]
    reader: str


@dataclass(frozen=True, kw_only=True)
class Base:
    """A base model that can be loaded.

    Args:
        name: Of a registered base, or of its folder; goes into every file that leaves the machine.
        source: What `--base` takes to find it here again.
        defaults: Settings that suit it.
        locate: The base's files; fetches those that are missing, under the eyes of a reporter.
        architecture: Its shapes; fetches configurations at most.
        training_prompts: (count, seed) to prompts.
        student: The distilled LoRA that ships with it, if one does.
        labelled_prompts: (count, seed, held_out) to prompts with labels; None if the base has none.
        warn: A prompt to a sentence about what the base cannot know of it, or an empty string.
    """

    name: str
    source: str
    defaults: Defaults
    locate: Callable[[Reporter], Weights]
    architecture: Callable[[Reporter], Architecture]
    training_prompts: Callable[[int, int], list[str]]
    student: Path | None = None
    labelled_prompts: Callable[[int, int, bool], LabelledPrompts] | None = None
    warn: Callable[[str], str] = lambda prompt: ""


BASES: Registry[Base] = Registry("base")

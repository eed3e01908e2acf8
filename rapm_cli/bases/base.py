"""The interface of a base model, and the registry of bases with a name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rapm_cli.bases.architectures import Architecture
from rapm_cli.bases.support import EPSILON
from rapm_cli.bases.weights import Weights
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry
from rapm_cli.core.method.sizes import Size, check_size
from rapm_cli.formats.lora_ref import LoraRef


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
    checkpoint_every: int  # iterations between checkpoints
    rollout_batch: int  # prompts in one batch of the teacher
    image_batch: int  # images sampled and decoded in one batch


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
        name: Registered name, or name of the folder; written into every file that leaves the machine.
        source: Value of `--base` that finds the base again on this machine.
        defaults: Default settings of a distillation.
        locate: Function that returns the files and downloads missing ones.
        identity: Function that returns the identity of the weights, equal wherever they are; it downloads no weights.
        architecture: Function that returns the shapes; it downloads configurations at most.
        training_prompts: Function (count, seed) -> prompts.
        prediction_type: What the network predicts: "epsilon" or "v_prediction".
        has_zero_snr: Whether its noise schedule is rescaled so that no signal is left at the last timestep.
        student: Distilled LoRA that ships with the base, or None.
        former_students: sha256 of files in which the same LoRA shipped before, under another header. Images name them.
        labelled_prompts: Function (count, seed, held_out) -> prompts with labels; None if the base has none.
        loras: LoRAs that are merged into the UNet; `merged.with_loras` sets these.
        bare: The base without them; None where there are none.
        warn: Function from a prompt to a warning about words that the base does not know, or an empty string.
    """

    name: str
    source: str
    defaults: Defaults
    locate: Callable[[Reporter], Weights]
    identity: Callable[[Reporter], str]
    architecture: Callable[[Reporter], Architecture]
    training_prompts: Callable[[int, int], list[str]]
    prediction_type: str = EPSILON
    has_zero_snr: bool = False
    student: Path | None = None
    former_students: frozenset[str] = frozenset()
    labelled_prompts: Callable[[int, int, bool], LabelledPrompts] | None = None
    loras: tuple[LoraRef, ...] = ()
    bare: "Base | None" = None
    warn: Callable[[str], str] = lambda prompt: ""

    def size(self, name: str | None, reporter: Reporter) -> Size | None:
        """Return a size of images by its name, such as "832x1216"; None, for the base's own size, where there is none.

        Raises:
            ConfigError: It is no size, or one by which the base's networks cannot divide.
        """
        return check_size(name, self.architecture(reporter).size_step, self.name) if name else None


BASES: Registry[Base] = Registry("base")

"""Settings of a distillation: one frozen record, checked when it is built, saved with the run."""

import dataclasses
import hashlib
import json
import math
from dataclasses import dataclass
from typing import Any, TypeVar

from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.network.schedule import fine_grid

START_FROM = ("student", "teacher", "mixed")
DISCRIMINATOR_SETS = ("both", "relative", "absolute", "none")
DISCRIMINATOR_TIMES = ("slot", "edge", "all")
LORA_INITS = ("kaiming", "gaussian")
PRECISIONS = ("fp32", "bf16", "fp16")
VRAM = ("auto", "24", "16", "12", "8")
MAX_GUIDANCE = 50
MOST = 1_000_000  # trajectories, and those in a batch


def _check(is_good: bool, option: str, value: object, wants: str) -> None:
    if not is_good:
        raise ConfigError(f"--{option} {value} is out of range", f"give {wants}")


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """What identifies stored trajectories besides their prompts.

    Args:
        base: Name or folder of the base model.
        num_slots: N, the student's steps.
        fine_steps: M, teacher steps in each slot.
        delta: Fine teacher steps before the student takes over, in [1, M).
        guidance_scale: diffusers' form.
        trajectories: How many prompts.
        seed: Seed of prompts and noise.
        precision: Of the frozen weights.
    """

    base: str
    num_slots: int = 4
    fine_steps: int = 10
    delta: int = 1
    guidance_scale: float = 7.5
    trajectories: int = 1000
    seed: int = 0
    precision: str = "fp32"

    def __post_init__(self) -> None:
        _check(self.fine_steps >= 2, "fine-steps", self.fine_steps, "at least 2")
        fine_grid(self.num_slots, self.fine_steps)
        _check(1 <= self.delta < self.fine_steps, "delta", self.delta, f"1 to {self.fine_steps - 1} (--fine-steps)")
        _check(1 <= self.guidance_scale <= MAX_GUIDANCE, "guidance", self.guidance_scale, f"1 to {MAX_GUIDANCE}")
        _check(1 <= self.trajectories <= MOST, "trajectories", self.trajectories, f"1 to {MOST}")
        _check(0 <= self.seed < 2**63, "seed", self.seed, "0 to 2^63 - 1")
        _check(self.precision in PRECISIONS, "precision", self.precision, f"one of {', '.join(PRECISIONS)}")

    def fingerprint(self, *more: str) -> str:
        """Twelve hexadecimal digits of these settings and of `more`, such as the prompts' hash."""
        text = json.dumps([dataclasses.asdict(self), *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """What phase 2 does with the trajectories.

    Args:
        method: Name from `METHODS`.
        rank: LoRA rank.
        alpha: The update is (alpha / rank) B A; alpha = rank unless said otherwise.
        iterations: Walks over all slots; each slot is an update of the student, but where a method says otherwise.
        batch_size: Trajectories in each iteration.
        lora_init: How A begins: uniform within 1 / sqrt(inputs), or normal with deviation 1 / rank.
        learning_rate: The student's peak rate; warmed up over `warmup` iterations, then along a cosine.
        final_rate: Share of the peak rate that the cosine ends at.
        ema_decay: What a running average of the student keeps of itself in an iteration; the LoRA is the average. 0
            for none.
        discriminator_learning_rate: The discriminators' rate.
        warmup: Iterations of rising rate.
        weight_decay: AdamW's, student.
        max_grad_norm: Clipping, student and discriminators.
        relative_weight: Weight of the distance to the relative target; 0 leaves the target out.
        absolute_weight: Weight of the distance to the absolute target; 0 leaves it out.
        adversarial_weight: Weight of the student's adversarial losses (lambda).
        slot_weights: Weight of each slot's loss, noisiest slot first; empty means 1 for all.
        start_from: Whether a slot starts where the student ended the last one, at the teacher's position, or for each
            picture at one of the two by chance ("mixed").
        discriminators: Which positions have a discriminator.
        fake_updates: Updates of DMD2's fake score for each of the student's.
        lcm_times: Times that LCM is trained at, between which its teacher takes one step.
        discriminator: Kind of discriminator.
        discriminator_times: The noise that discriminators see latents under: a random time of the slot above them,
            none ("edge"), or a random time of all above them.
        checkpointing: Recompute activations in backward.
        vram: The plan by which it fits the device: memory of the card in GB, or "auto".
        compile: Compile the network's transformer blocks.
        channels_last: Keep its convolutions in channels-last layout.
        cuda_graphs: On a GPU, record passes that come again, and start each in one piece.
        seed: Seed of the LoRA, the discriminators, the order and the noise.
    """

    method: str = "rapm"
    rank: int = 1
    alpha: float = None  # type: ignore[assignment]  # becomes the rank
    iterations: int = 20_000
    batch_size: int = 1
    lora_init: str = "kaiming"
    learning_rate: float = 5e-5
    final_rate: float = 0.1
    ema_decay: float = 0.0
    discriminator_learning_rate: float = 1e-5
    warmup: int = 10
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    relative_weight: float = 1.0
    absolute_weight: float = 1.0
    adversarial_weight: float = 0.1
    slot_weights: tuple[float, ...] = ()
    start_from: str = "student"
    discriminators: str = "both"
    fake_updates: int = 5
    lcm_times: int = 50
    discriminator: str = "unet"
    discriminator_times: str = "slot"
    checkpointing: bool = False
    vram: str = "auto"
    compile: bool = False
    channels_last: bool = False
    cuda_graphs: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _check(1 <= self.rank <= 1024, "rank", self.rank, "1 to 1024")
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))
        _check(math.isfinite(self.alpha) and self.alpha > 0, "alpha", self.alpha, "a number above 0")
        _check(1 <= self.iterations < 10**8, "iterations", self.iterations, "1 to 99999999")
        _check(1 <= self.batch_size <= MOST, "batch-size", self.batch_size, f"1 to {MOST}")
        _check(0 < self.learning_rate < 1, "learning-rate", self.learning_rate, "a number above 0 and below 1")
        _check(
            0 < self.discriminator_learning_rate < 1,
            "discriminator-learning-rate",
            self.discriminator_learning_rate,
            "a number above 0 and below 1",
        )
        _check(self.lora_init in LORA_INITS, "lora-init", self.lora_init, " or ".join(LORA_INITS))
        _check(0 <= self.final_rate <= 1, "final-rate", self.final_rate, "a number from 0 to 1")
        _check(0 <= self.ema_decay < 1, "ema-decay", self.ema_decay, "a number from 0, below 1")
        _check(0 <= self.warmup < 10**8, "warmup", self.warmup, "0 to 99999999")
        _check(self.max_grad_norm > 0, "max-grad-norm", self.max_grad_norm, "a number above 0")
        _check(0 <= self.weight_decay <= 1, "weight-decay", self.weight_decay, "a number from 0 to 1")
        for name in ("relative_weight", "absolute_weight", "adversarial_weight"):
            value = getattr(self, name)
            _check(math.isfinite(value) and value >= 0, name.replace("_", "-"), value, "a number from 0")
        are_weights = all(math.isfinite(weight) and weight >= 0 for weight in self.slot_weights)
        are_weights = are_weights and any(self.slot_weights or (1,))
        words = ",".join(f"{weight:g}" for weight in self.slot_weights)
        _check(are_weights, "slot-weights", words, "numbers from 0, not all 0")
        _check(self.start_from in START_FROM, "start-from", self.start_from, "student, teacher or mixed")
        _check(
            self.discriminators in DISCRIMINATOR_SETS,
            "discriminators",
            self.discriminators,
            f"one of {', '.join(DISCRIMINATOR_SETS)}",
        )
        _check(
            self.discriminator_times in DISCRIMINATOR_TIMES,
            "discriminator-times",
            self.discriminator_times,
            f"one of {', '.join(DISCRIMINATOR_TIMES)}",
        )
        _check(1 <= self.fake_updates <= 1000, "fake-updates", self.fake_updates, "1 to 1000")
        _check(self.lcm_times > 0 and 1000 % self.lcm_times == 0, "lcm-times", self.lcm_times, "a divisor of 1000")
        _check(self.vram in VRAM, "vram", self.vram, f"one of {', '.join(VRAM)}")
        if not (self.relative_weight or self.absolute_weight or self.discriminated_positions):
            raise ConfigError("every loss is switched off", "give one of the weights a value above 0")

    @property
    def discriminated_positions(self) -> tuple[str, ...]:
        """The positions that have a discriminator: of "relative" and "absolute"."""
        if self.adversarial_weight == 0 or self.discriminators == "none":
            return ()
        return ("relative", "absolute") if self.discriminators == "both" else (self.discriminators,)

    @property
    def needs_relative_target(self) -> bool:
        """False where no loss and no discriminator looks at it, which saves an evaluation in each slot."""
        return self.relative_weight > 0 or "relative" in self.discriminated_positions


C = TypeVar("C", TeacherConfig, TrainConfig)


def to_json(config: TeacherConfig | TrainConfig) -> dict[str, Any]:
    """Settings as JSON values; tuples become lists."""
    record = dataclasses.asdict(config)
    return {name: list(value) if isinstance(value, tuple) else value for name, value in record.items()}


def from_json(kind: type[C], record: object) -> C:
    """Read back what `to_json` wrote.

    Raises:
        InputError: A setting is unknown, missing without a default, of another type, or out of range.
    """
    remedy = "give a file that rapm wrote"
    if not isinstance(record, dict):
        raise InputError(f"{kind.__name__} is not a table of settings", remedy)
    types = {field.name: field.type for field in dataclasses.fields(kind)}
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in record.items()
    }
    for name, value in values.items():
        if name not in types or not _has_type(value, types[name]):
            raise InputError(f"the setting {name!r} is unknown or of a wrong type", remedy)
    try:
        return kind(**values)
    except TypeError as error:
        raise InputError(f"a setting of {kind.__name__} is missing", remedy) from error
    except ConfigError as error:
        raise InputError(error.message, remedy) from error


def _has_type(value: object, wanted: object) -> bool:
    if isinstance(value, tuple):
        return wanted == tuple[float, ...] and all(type(item) in (int, float) for item in value)
    return type(value) is wanted or (wanted is float and type(value) is int)

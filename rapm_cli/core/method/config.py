"""Settings of a distillation: each is declared once, with its type, range, default, help text and stored name.

`rapm distill` makes its options from these declarations. The module imports no torch, so that help is fast.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass as plain_dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.method.setting_words import out_of_range, range_of, shown, wanted
from rapm_cli.core.method.sizes import Size, parse_size

MethodName = Literal["rapm", "pcm", "lcm", "dmd2", "kd"]
DiscriminatorName = Literal["unet", "unet-mid", "latent"]
Precision = Literal["fp32", "bf16", "fp16"]
Vram = Literal["auto", "24", "16", "12", "8"]
MAX_GUIDANCE = 50
MAX_ITERATIONS = 10**8 - 1
MAX_TRAJECTORIES = 1_000_000  # in a run, and in a batch
# Strict: text is no number, and True is no number either. Both names of a setting are read: ours and the stored one.
CHECKED = ConfigDict(extra="forbid", strict=True, validate_by_name=True, validate_by_alias=True, defer_build=True)


@plain_dataclass(frozen=True)
class Option:
    """How `rapm distill` offers a setting.

    Args:
        panel: Heading on the help page; empty for the panel that stands first.
        name: Name without dashes, where it is not the field's.
        is_bases: Whether each base has its own default.
        shown_default: Default in words for the help page, where a base has it or the setting computes it.
        before: Value that describes runs of older versions, which lack the setting; None for the first settings.
    """

    panel: str
    name: str = ""
    is_bases: bool = False
    shown_default: str = ""
    before: object = None


MAIN, METHOD, TRAINING, RUN = "", "Method", "Training", "Run"  # panels; the first one's heading is the help page's own
Rate = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Checked:
    """Base of the settings. An error of pydantic becomes one line that names the option and its range."""

    @model_validator(mode="wrap")
    @classmethod
    def _name_the_option(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            return check(values)
        except ValidationError as error:
            raise _explained(cls, values, error) from error


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TeacherConfig(Checked):
    """Settings of the teacher. With the prompts they identify stored trajectories.

    `base` is the name or folder of the model.
    """

    base: str
    num_slots: Annotated[int, Field(description="Steps that the student takes (N)."), Option(METHOD, "steps")] = 4
    fine_steps: Annotated[
        int,
        Field(ge=2, description="Teacher steps for each step of the student (M)."),
        Option(METHOD, is_bases=True, shown_default="10"),
    ] = 10
    delta: Annotated[
        int,
        Field(ge=1, description="Teacher steps from the slot's start to z_ahead; below --fine-steps."),
        Option(METHOD),
    ] = 1
    guidance_scale: Annotated[
        float,
        Field(ge=1, le=MAX_GUIDANCE, description="Guidance scale of the teacher; 1 disables guidance."),
        Option(METHOD, "guidance", is_bases=True, shown_default="7.5, demo: 2"),
    ] = 7.5
    trajectories: Annotated[
        int,
        Field(ge=1, le=MAX_TRAJECTORIES, description="Number of teacher trajectories."),
        Option(MAIN, is_bases=True, shown_default="1000, demo: 128"),
    ] = 1000
    sizes: Annotated[
        tuple[str, ...],
        Field(
            strict=False,
            description="Sizes of the trajectories' images, such as 1024x1024,832x1216; sdxl: the sizes of SDXL.",
        ),
        Option(METHOD, "size", shown_default="the base's own", before=()),
    ] = ()
    seed: Annotated[int, Field(ge=0, le=2**63 - 1)] = 0
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        from rapm_cli.core.network.schedule import fine_grid  # here, because it imports torch

        fine_grid(self.num_slots, self.fine_steps)
        for name in self.sizes:
            parse_size(name)
        if self.delta >= self.fine_steps:
            raise out_of_range("delta", self.delta, f"1 to {self.fine_steps - 1} (--fine-steps)")

    @property
    def stride(self) -> int:
        """Number of trajectories from one to the next of the same size."""
        return max(1, len(self.sizes))

    @property
    def shown_size(self) -> Size | None:
        """The size at which samples are compared: the first; None for the base's own."""
        return self.size_of(0)

    def size_of(self, number: int) -> Size | None:
        """Return the size of a trajectory's image by its number; None for the base's own."""
        return parse_size(self.sizes[number % self.stride]) if self.sizes else None

    def fingerprint(self, *more: str) -> str:
        """Return twelve hexadecimal digits of these settings and of `more`, such as the hash of the prompts."""
        text = json.dumps([to_json(self), *more], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True, config=CHECKED)
class TrainConfig(Checked):
    """Settings of training. Aliases are the names in stored files, which stay when an option is renamed."""

    method: Annotated[
        MethodName,
        Field(description="RAPM, or a peer method in the same trainer."),
        Option(METHOD, before="rapm"),
    ] = "rapm"
    relative_weight: Annotated[
        Weight, Field(description="Weight of the relative target; 0 disables it."), Option(METHOD)
    ] = 1.0
    absolute_weight: Annotated[
        Weight, Field(description="Weight of the absolute target; 0 disables it."), Option(METHOD)
    ] = 1.0
    adversarial_weight: Annotated[
        Weight, Field(description="Weight of the adversarial losses (lambda); 0 disables them."), Option(METHOD)
    ] = 0.1
    slot_weights: Annotated[
        tuple[float, ...],
        Field(strict=False, description="Loss weight of each step, noisiest first, such as 1,1,0.5,0.5."),
        Option(METHOD),
    ] = ()
    start_from: Annotated[
        Literal["student", "teacher", "mixed"],
        Field(description="Where a step starts: at the student's latent, the teacher's, or either by chance."),
        Option(METHOD),
    ] = "student"
    discriminators: Annotated[
        Literal["both", "relative", "absolute", "none"],
        Field(description="Targets that have a discriminator. pcm has a single one; none disables it."),
        Option(METHOD),
    ] = "both"
    fake_updates: Annotated[
        int,
        Field(ge=1, le=1000, description="dmd2: updates of the fake score for each update of the student."),
        Option(METHOD, before=5),
    ] = 5
    lcm_timesteps: Annotated[
        int,
        Field(alias="lcm_times", ge=1, description="lcm: timesteps to train at, a divisor of 1000."),
        Option(METHOD, before=50),
    ] = 50
    discriminator: Annotated[
        DiscriminatorName,
        Field(description="Features: the frozen UNet's, its deepest block's only, or the latent's (lightest)."),
        Option(METHOD),
    ] = "unet"
    discriminator_noise: Annotated[
        Literal["slot", "edge", "all"],
        Field(
            alias="discriminator_times",
            description="Noise added before the discriminator: t in the slot above, none, or any t above.",
        ),
        Option(METHOD, before="slot"),
    ] = "slot"
    rank: Annotated[
        int, Field(ge=1, le=1024, description="LoRA rank."), Option(MAIN, is_bases=True, shown_default="1, demo: 8")
    ] = 1
    alpha: Annotated[
        float,
        Field(gt=0, allow_inf_nan=False, description="LoRA alpha: the update is alpha / rank x B A."),
        Option(TRAINING, is_bases=True, shown_default="the rank"),
    ] = None  # type: ignore[assignment]  # becomes the rank
    lora_init: Annotated[
        Literal["kaiming", "gaussian"],
        Field(description="Start of the LoRA's A: uniform within 1/sqrt(inputs), or normal with deviation 1/rank."),
        Option(TRAINING, before="kaiming"),
    ] = "kaiming"
    iterations: Annotated[
        int,
        Field(ge=1, le=MAX_ITERATIONS, description="Training iterations; each visits every slot."),
        Option(MAIN, is_bases=True, shown_default="20000, demo: 120"),
    ] = 20_000
    batch_size: Annotated[
        int,
        Field(ge=1, le=MAX_TRAJECTORIES, description="Trajectories in each iteration."),
        Option(TRAINING, is_bases=True, shown_default="1, demo: 8"),
    ] = 1
    learning_rate: Annotated[
        Rate,
        Field(description="Peak learning rate of the student, after warmup; then it falls along a cosine."),
        Option(TRAINING, is_bases=True, shown_default="5e-05, demo: 0.002"),
    ] = 5e-5
    min_lr_ratio: Annotated[
        float,
        Field(alias="final_rate", ge=0, le=1, description="Final learning rate as a fraction of --learning-rate."),
        Option(TRAINING, before=0.1),
    ] = 0.1
    ema_decay: Annotated[
        float,
        Field(ge=0, lt=1, description="EMA decay of the LoRA weights; 0 disables it."),
        Option(TRAINING, before=0.0),
    ] = 0.0
    discriminator_learning_rate: Annotated[
        Rate,
        Field(description="Learning rate of the discriminators, and of dmd2's fake score."),
        Option(TRAINING, is_bases=True, shown_default="1e-05, demo: 0.0002"),
    ] = 1e-5
    warmup: Annotated[
        int,
        Field(ge=0, le=MAX_ITERATIONS, description="Iterations of linear learning-rate warmup."),
        Option(TRAINING, is_bases=True, shown_default="100, demo: 3"),
    ] = 10
    weight_decay: Annotated[
        float, Field(ge=0, le=1, description="AdamW weight decay of the student."), Option(TRAINING)
    ] = 0.0
    max_grad_norm: Annotated[
        float, Field(gt=0, description="Gradient norm to clip to, for student and discriminators."), Option(TRAINING)
    ] = 1.0
    gradient_checkpointing: Annotated[
        bool,
        Field(alias="checkpointing", description="Recompute activations in the backward pass to save memory."),
        Option(TRAINING),
    ] = False
    vram: Annotated[
        Vram,
        Field(description="GPU memory in GB that training must fit into; 8 rounds the base to 8 bits."),
        Option(MAIN),
    ] = "auto"
    compile: Annotated[
        bool, Field(description="Compile the transformer blocks with torch.compile."), Option(TRAINING)
    ] = False
    channels_last: Annotated[
        bool, Field(description="Keep convolutions in channels-last memory layout."), Option(TRAINING)
    ] = False
    cuda_graphs: Annotated[
        bool, Field(description="Record CUDA graphs, which launch many kernels at once."), Option(TRAINING)
    ] = True
    seed: Annotated[int, Field(ge=0, le=2**63 - 1, description="Random seed of the whole run."), Option(RUN)] = 0

    def __post_init__(self) -> None:
        if self.alpha is None:
            object.__setattr__(self, "alpha", float(self.rank))
        are_weights = all(math.isfinite(weight) and weight >= 0 for weight in self.slot_weights)
        if not are_weights or not any(self.slot_weights or (1,)):
            raise out_of_range("slot-weights", shown(self.slot_weights), "numbers from 0, not all 0")
        if 1000 % self.lcm_timesteps:
            raise out_of_range("lcm-timesteps", self.lcm_timesteps, "a divisor of 1000")
        if not (self.relative_weight or self.absolute_weight or self.discriminated_positions):
            raise ConfigError("every loss is disabled", "give one of the weights a value above 0")

    @property
    def discriminated_positions(self) -> tuple[str, ...]:
        """The targets that have a discriminator: "relative", "absolute", both or none."""
        if self.adversarial_weight == 0 or self.discriminators == "none":
            return ()
        return ("relative", "absolute") if self.discriminators == "both" else (self.discriminators,)

    @property
    def needs_relative_target(self) -> bool:
        """False if no loss and no discriminator uses the relative target, which saves an evaluation in each slot."""
        return self.relative_weight > 0 or "relative" in self.discriminated_positions


C = TypeVar("C", TeacherConfig, TrainConfig)


def declared(kind: type[Checked]) -> dict[str, FieldInfo]:
    """Return the declaration of each setting by its field's name."""
    fields: dict[str, FieldInfo] = kind.__pydantic_fields__  # type: ignore[attr-defined]
    return fields


def options() -> Iterator[tuple[str, FieldInfo, Option]]:
    """Yield the name, the declaration and the option of each setting that `rapm distill` offers."""
    for kind in (TeacherConfig, TrainConfig):
        for name, field in declared(kind).items():
            for option in field.metadata:
                if isinstance(option, Option):
                    yield name, field, option


def option_name(name: str) -> str:
    """Return the option, without dashes, of a setting that is given by its field's or its stored name."""
    for field_name, field, option in options():
        if name in (field_name, field.alias):
            return option.name or field_name.replace("_", "-")
    return name.replace("_", "-")


def _as_json(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


# Stored names of settings that older versions lack, with the value that describes their runs.
LATER = {field.alias or name: _as_json(option.before) for name, field, option in options() if option.before is not None}


def to_json(config: TeacherConfig | TrainConfig) -> dict[str, Any]:
    """Return settings as JSON values under their stored names; tuples become lists.

    Of a teacher, a later setting is left out while it has the value that versions without it used, so that older
    trajectories are found.
    """
    fields = declared(type(config))
    record = {fields[name].alias or name: value for name, value in dataclasses.asdict(config).items()}
    made = {name: _as_json(value) for name, value in record.items()}
    return without_usual(made) if isinstance(config, TeacherConfig) else made


def without_usual(record: dict[str, Any]) -> dict[str, Any]:
    """Leave out later settings, of a record in JSON values, that have the value which versions without them used."""
    return {name: value for name, value in record.items() if (name, value) not in LATER.items()}


def from_json(kind: type[C], record: object) -> C:
    """Return the settings that `to_json` wrote.

    Raises:
        InputError: A setting is unknown, missing without a default, of another type, or out of range.
    """
    remedy = "give a file that rapm wrote"
    if not isinstance(record, dict):
        raise InputError(f"{kind.__name__} is not a table of settings", remedy)
    try:
        return kind(**record)
    except ConfigError as error:
        raise InputError(error.message, remedy) from error


def _explained(kind: type[Checked], values: Any, error: ValidationError) -> ConfigError:
    """Return pydantic's first complaint as our error."""
    first = error.errors(include_url=False)[0]
    name = str(first["loc"][0]) if first["loc"] else kind.__name__
    known = [(key, field) for key, field in declared(kind).items() if name in (key, field.alias)]
    if not known:
        return ConfigError(f"the setting {name!r} is unknown", "see --help")
    key, field = known[0]
    if first["type"] == "missing":
        return ConfigError(f"the setting {name!r} is missing", "see --help")
    if first["type"] == "unexpected_keyword_argument":  # under its old and its new name
        return ConfigError(f"--{option_name(name)} is given twice, as {field.alias} and {key}", "give one of the two")
    value = shown(getattr(values, "kwargs", values)[name])
    return out_of_range(option_name(name), value, range_of(field) or wanted(first))

"""Settings of a run, and whether two commands mean the same run."""

import dataclasses
import hashlib
import json
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from pydantic.dataclasses import dataclass

from rapm_cli import __version__
from rapm_cli.bases.plans import is_rounded
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.method.config import (
    CHECKED,
    Checked,
    TeacherConfig,
    TrainConfig,
    option_name,
    to_json,
    without_usual,
)
from rapm_cli.core.method.setting_words import in_words, out_of_range
from rapm_cli.formats.lora_ref import LoraRef

# Names in files of settings that may change when a run is resumed, because the work that is done stays valid. Only
# --resume may change to or from a plan that rounds the base.
CHANGEABLE = ("iterations", "checkpointing", "vram", "compile", "channels_last", "cuda_graphs")
MIN_SAMPLES, MAX_SAMPLES = 8, 100_000  # prompts of a comparison
Texts = Annotated[tuple[str, ...], Field(strict=False)]  # a JSON list is no tuple to pydantic's strict mode


@dataclass(frozen=True, config=CHECKED)
class Settings(Checked):
    """Everything that a run is made from.

    Args:
        source: Base model, as `--base` takes it.
        base_name: Name of the base in files that leave this machine.
        base_identity: Hash that identifies the weights of the base.
        teacher: Settings of the trajectories.
        training: Settings of training.
        prompts: One prompt for each trajectory.
        samples: Number of held-out prompts in the comparison at the end; 0 for no comparison.
        checkpoint_every: Iterations between checkpoints.
        device: Kind of device that the run trains on.
        machine: Description of the machine, with everything that the bits of the result depend on.
        deterministic: Whether to use only algorithms that give the same bits each time.
        report_to: Names of the trackers that the training reports to. These and the previews change no bit of the LoRA.
        preview_every: Iterations from one preview to the next; 0 for none.
        preview_prompts: Prompts of the previews; none for those of the contact sheet.
        init_lora: LoRA that the student starts from; None for a fresh one.
        base_loras: LoRAs that are merged into the base. `base_identity` tells them apart.
    """

    source: str
    base_name: str
    base_identity: str
    teacher: TeacherConfig
    training: TrainConfig
    prompts: Texts
    samples: int
    checkpoint_every: Annotated[int, Field(alias="save_every", ge=1)]
    device: str = "cpu"
    machine: str = ""
    deterministic: bool = False
    report_to: Texts = ()
    preview_every: Annotated[int, Field(ge=0)] = 0
    preview_prompts: Texts = ()
    init_lora: LoraRef | None = None
    base_loras: Annotated[tuple[LoraRef, ...], Field(strict=False)] = ()

    def __post_init__(self) -> None:
        if not (MIN_SAMPLES <= self.samples <= MAX_SAMPLES or self.samples == 0):
            raise out_of_range("samples", self.samples, f"{MIN_SAMPLES} to {MAX_SAMPLES}, or 0 for no comparison")

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of the settings that may not change during a run.

        A later setting is left out while it has the value that versions without it used, so that older runs resume.
        """
        text = json.dumps(without_usual(self._fixed()), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: "Settings", *, may_round: bool) -> list[str]:
        """Return each fixed setting that differs, in words: my value, and the other's.

        Args:
            other: Settings to compare with.
            may_round: Whether one of the two may train on a rounded base.
        """
        mine, theirs = self._fixed(), other._fixed()
        plans = self.training.vram, other.training.vram
        if not may_round and is_rounded(plans[0]) != is_rounded(plans[1]):
            mine["vram"], theirs["vram"] = plans
        values = {name: (mine.get(name), theirs.get(name)) for name in mine | theirs}
        named = {name: (one, other) for name, (one, other) in values.items() if one != other}
        if self.base_identity == other.base_identity:
            named.pop("base", None)  # equal weights under another name
        elif "base" in named:
            named.pop("base_identity")
        elif (loras := (_lora_words(self), _lora_words(other)))[0] != loras[1]:
            named = {"base_lora": loras} | {name: values for name, values in named.items() if name != "base_identity"}
        if "rank" in named and named["rank"] == named.get("alpha"):  # alpha follows the rank by default
            named.pop("alpha")
        return [_difference(name, *values) for name, values in named.items()]

    def named_as(self, other: "Settings") -> "Settings":
        """Return these settings under the other's name of the base, if both bases have equal weights.

        The name is in fingerprints, so that checkpoints and trajectories made under the other name are found.
        """
        if self.base_identity != other.base_identity:
            return self
        teacher = dataclasses.replace(self.teacher, base=other.teacher.base)
        return dataclasses.replace(self, base_name=other.base_name, teacher=teacher)

    def recipe(self) -> dict[str, Any]:
        """Return the settings that every file of the run carries: no path, and no prompt of the user's."""
        lists = {"base_loras": self.base_loras, "started_from": (self.init_lora,) if self.init_lora else ()}
        return {
            "rapm": __version__,
            "base": self.base_name,
            "base_identity": self.base_identity,
            **{name: [lora.record for lora in loras] for name, loras in lists.items() if loras},
            "teacher": to_json(self.teacher),
            "training": to_json(self.training),
        }

    def to_bytes(self) -> bytes:
        """Return the settings as JSON for `from_bytes`."""
        record = dataclasses.asdict(self) | {"teacher": to_json(self.teacher), "training": to_json(self.training)}
        record["save_every"] = record.pop("checkpoint_every")
        return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Settings":
        """Return the settings that `to_bytes` wrote.

        Raises:
            InputError: The bytes are something else.
        """
        try:
            return TypeAdapter(cls).validate_json(data)
        except (ValueError, ConfigError) as error:
            raise InputError("the run's settings cannot be read", "start a new run") from error

    def _fixed(self) -> dict[str, Any]:
        training = {name: value for name, value in to_json(self.training).items() if name not in CHANGEABLE}
        prompts = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        more: dict[str, Any] = {
            "base_identity": self.base_identity,
            "prompts": prompts,
            "deterministic": self.deterministic,
        }
        started = {"init_lora": self.init_lora.record} if self.init_lora else {}
        sizes = {"sizes": list(self.teacher.sizes)}  # which files of a teacher leave out where there are none
        return {**to_json(self.teacher), **sizes, **training, **more, **started}


def _lora_words(settings: Settings) -> str:
    return ", ".join(lora.words for lora in settings.base_loras) or "none"


def _difference(name: str, mine: object, other: object) -> str:
    if name == "base_identity":
        return "other base weights"
    if name == "prompts":
        return "other prompts"
    if name == "init_lora":
        return "another --init-lora"
    return f"{option_name(name)} {in_words(mine)}, not {in_words(other)}"

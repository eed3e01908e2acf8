"""What a run was started with, and whether a new command means the same run."""

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from typing import Any

from rapm_cli import __version__
from rapm_cli.bases.plans import is_rounded
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.method.config import TeacherConfig, TrainConfig, from_json, to_json

# Another value of these makes no other run: the work that is done stays right. Only --resume may round the base by it.
CHANGEABLE = ("iterations", "checkpointing", "vram", "compile", "channels_last", "cuda_graphs")
LATER = {  # settings that came later, with what was done before
    "method": "rapm",
    "fake_updates": 5,
    "lcm_times": 50,
    "lora_init": "kaiming",
    "final_rate": 0.1,
    "ema_decay": 0.0,
    "discriminator_times": "slot",
}
MIN_SAMPLES, MAX_SAMPLES = 8, 100_000  # prompts of a comparison


@dataclass(frozen=True)
class Settings:
    """All that a run is made from.

    Args:
        source: The base, as `--base` takes it.
        base_name: As it is called in files that leave this machine.
        base_identity: What identifies its weights.
        teacher: Settings of phase 1.
        training: Settings of phase 2.
        prompts: One for each trajectory.
        samples: Held-out prompts in the comparison at the end; 0 for none.
        save_every: Iterations between commits.
        device: Kind of device that it runs on.
        machine: The device in words, with all that its bits depend on.
        deterministic: Only algorithms that give the same bits each time.
    """

    source: str
    base_name: str
    base_identity: str
    teacher: TeacherConfig
    training: TrainConfig
    prompts: tuple[str, ...]
    samples: int
    save_every: int
    device: str = "cpu"
    machine: str = ""
    deterministic: bool = False

    def __post_init__(self) -> None:
        if self.save_every < 1:
            raise ConfigError(f"--save-every {self.save_every} is out of range", "give at least 1")
        if not (MIN_SAMPLES <= self.samples <= MAX_SAMPLES or self.samples == 0):
            raise ConfigError(
                f"--samples {self.samples} is out of range",
                f"give at least {MIN_SAMPLES}, at most {MAX_SAMPLES}, or 0 for no comparison",
            )

    @property
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits of what may not change while a run lasts.

        What versions before a setting did is left out, so that runs outlive new settings.
        """
        told = {name: value for name, value in self._fixed().items() if (name, value) not in LATER.items()}
        text = json.dumps(told, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def differences(self, other: "Settings", *, may_round: bool) -> list[str]:
        """Each setting that may not change and does, in words: mine, and the other's.

        Args:
            other: The settings that are wanted.
            may_round: Whether the base may be rounded in one of the two alone.
        """
        mine, theirs = self._fixed(), other._fixed()
        plans = self.training.vram, other.training.vram
        if not may_round and is_rounded(plans[0]) != is_rounded(plans[1]):
            mine["vram"], theirs["vram"] = plans
        named = {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}
        if "base" in named:
            named.pop("base_identity", None)
        if "rank" in named and named["rank"] == named.get("alpha"):  # alpha is the rank unless one says otherwise
            named.pop("alpha")
        return [_difference(name, *values) for name, values in named.items()]

    def recipe(self) -> dict[str, Any]:
        """What every file of the run says of how it was made; no path, and no prompt of the user's."""
        return {
            "rapm": __version__,
            "base": self.base_name,
            "base_identity": self.base_identity,
            "teacher": to_json(self.teacher),
            "training": to_json(self.training),
        }

    def to_bytes(self) -> bytes:
        """As JSON, for `from_bytes`."""
        record = dataclasses.asdict(self) | {"teacher": to_json(self.teacher), "training": to_json(self.training)}
        return (json.dumps(record, indent=1, sort_keys=True) + "\n").encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Settings":
        """Read back what `to_bytes` wrote.

        Raises:
            InputError: It is something else.
        """
        try:
            record = json.loads(data)
            teacher, training = from_json(TeacherConfig, record["teacher"]), from_json(TrainConfig, record["training"])
            record |= {"teacher": teacher, "training": training, "prompts": tuple(record["prompts"])}
            made = cls(**record)
            texts = [made.source, made.base_name, made.base_identity, made.device, made.machine, *made.prompts]
            counts = [made.samples, made.save_every]
            if not all(isinstance(text, str) for text in texts) or any(type(count) is not int for count in counts):
                raise TypeError("a value has another type")
            return made
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError, ConfigError) as error:
            raise InputError("the run's settings cannot be read", "start a new run") from error

    def _fixed(self) -> dict[str, Any]:
        training = {name: value for name, value in to_json(self.training).items() if name not in CHANGEABLE}
        prompts = hashlib.sha256(json.dumps(self.prompts).encode()).hexdigest()
        more = {"base_identity": self.base_identity, "prompts": prompts, "deterministic": self.deterministic}
        return {**to_json(self.teacher), **training, **more}


def _difference(name: str, mine: object, other: object) -> str:
    if name == "base_identity":
        return "other base weights"
    if name == "prompts":
        return "other prompts"
    words = [("off", "on")[value] if isinstance(value, bool) else str(value) for value in (mine, other)]
    return f"{name.replace('_', '-')} {words[0]}, not {words[1]}"

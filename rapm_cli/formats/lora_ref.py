"""A LoRA file at a weight, as commands name it and as headers, images and runs remember it. This needs no torch."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHA256_LETTERS = frozenset("0123456789abcdef")


@dataclass(frozen=True)
class LoraRef:
    """A LoRA file at a weight.

    Args:
        source: Path of the file on this machine; it never leaves it.
        sha256: Checksum of the file, in hexadecimal digits.
        weight: Factor of the whole update.
    """

    source: str
    sha256: str
    weight: float = 1.0

    @property
    def path(self) -> Path:
        """Path of the file."""
        return Path(self.source)

    @property
    def name(self) -> str:
        """Name of the file, without its folder."""
        return self.path.name

    @property
    def words(self) -> str:
        """Name and weight, for messages."""
        return f"{self.name} at {self.weight:g}"

    @property
    def record(self) -> dict[str, Any]:
        """Name, checksum and weight as JSON values, for files that leave this machine."""
        return {"name": self.name, "sha256": self.sha256, "weight": self.weight}


def split_weight(text: str) -> tuple[str, float]:
    """Return the file and the weight of `FILE[:WEIGHT]`; the weight is 1 where none is given.

    Raises:
        ValueError: The weight is 0 or not finite.
    """
    name, colon, number = text.rpartition(":")
    try:
        weight = float(number)
    except ValueError:
        return text, 1.0
    if not (colon and name):
        return text, 1.0
    if not math.isfinite(weight) or weight == 0:
        raise ValueError(f"its weight {number} must be finite and not 0")
    return name, weight


def are_records(values: Any) -> bool:
    """Return True for a list of what `LoraRef.record` gives; headers of other people can hold anything."""
    return isinstance(values, list) and all(map(_is_record, values))


def _is_record(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"name", "sha256", "weight"}:
        return False
    name, sha256, weight = value["name"], value["sha256"], value["weight"]
    is_name = isinstance(name, str) and 0 < len(name) <= 255 and Path(name).name == name
    is_sum = isinstance(sha256, str) and len(sha256) == 64 and SHA256_LETTERS.issuperset(sha256)
    return is_name and is_sum and type(weight) in (int, float) and math.isfinite(weight)

"""Where a base's files are: a folder in diffusers layout, or a checkpoint with such a folder's configurations."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError

FP16 = "fp16"  # what repositories call the variant in half precision


@dataclass(frozen=True)
class Weights:
    """A base's files, all of them there.

    Args:
        folder: Configurations and tokenizers in diffusers layout and, but for a single file, the weights.
        identity: What tells these weights from others; the same wherever they lie.
        files: Names below `folder` that belong to the base, where other files lie beside them; empty means all.
        checkpoint: The one file that has the weights, in the original layout.
        prediction_type: What the checkpoint's network predicts, where that is known better than the folder does.
    """

    folder: Path
    identity: str
    files: tuple[str, ...] = ()
    checkpoint: Path | None = None
    prediction_type: str | None = None

    @property
    def origin(self) -> Path:
        """What to name in messages."""
        return self.checkpoint or self.folder

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """The configuration of one part.

        Raises:
            InputError: There is none.
        """
        return read_json(self.folder / part / name)

    def variant(self, part: str) -> str | None:
        """The variant of a part's weights that is there: None is full precision, which goes first in a folder."""
        names = [name for name in self._names(part) if name.endswith(".safetensors")]
        is_half = bool(names) and all(f".{FP16}." in name or f".{FP16}-" in name for name in names)
        return FP16 if is_half else None

    def _names(self, part: str) -> list[str]:
        if self.files:
            return [name for name in self.files if name.startswith(f"{part}/")]
        return [f"{part}/{path.name}" for path in (self.folder / part).glob("*")]


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file of a base.

    Raises:
        InputError: It is missing, or is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} is missing or cannot be read", "give a whole model in diffusers layout, with model_index.json"
        ) from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is no table of settings", "give a whole model in diffusers layout")
    return record

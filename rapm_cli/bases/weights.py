"""The files of a base: a folder in diffusers layout, or a checkpoint with the configurations of such a folder."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import InputError
from rapm_cli.formats.lora_ref import LoraRef

FP16 = "fp16"  # name of the half-precision variant in repositories
SHARD = r"(?:-\d+-of-\d+)?"
NAME = re.compile(rf"(?:diffusion_pytorch_)?model{SHARD}(?:\.({FP16}))?{SHARD}\.safetensors")  # a part's weights
INDEX = re.compile(
    rf"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.({FP16}))?\.json"
)  # index of a part's shards
OTHERS = re.compile(
    r"\.(safetensors|bin|msgpack|onnx\w*|h5|ckpt|pth?)(\.index(\.\w+)?\.json)?$"
)  # weights in any format
WHOLE = "give a whole Stable Diffusion XL or 1.5 with safetensors weights"


@dataclass(frozen=True)
class Weights:
    """The complete files of a base.

    Args:
        folder: Folder in diffusers layout with configurations, tokenizers and, without `checkpoint`, the weights.
        identity: Hash or commit that identifies these weights, wherever they are stored.
        files: Names below `folder` that belong to the base; empty means all.
        checkpoint: Single file with the weights, in the original layout, or None.
        prediction_type: Prediction type named by the checkpoint, which overrides the folder's; None for the folder's.
        loras: LoRAs that are merged into the UNet when it is loaded.
        has_zero_snr: Whether the checkpoint says that its noise schedule goes down to zero signal.
    """

    folder: Path
    identity: str
    files: tuple[str, ...] = ()
    checkpoint: Path | None = None
    prediction_type: str | None = None
    loras: tuple[LoraRef, ...] = ()
    has_zero_snr: bool = False

    @property
    def origin(self) -> Path:
        """Checkpoint or folder, as error messages name it."""
        return self.checkpoint or self.folder

    def config(self, part: str, name: str = "config.json") -> dict[str, Any]:
        """Read the configuration of one part.

        Raises:
            InputError: The configuration is missing.
        """
        return read_json(self.folder / part / name)

    def variant(self, part: str) -> str | None:
        """Return the variant of a part's weights to read: None for full precision if it is there, else "fp16".

        Raises:
            InputError: There are no weights that rapm reads.
        """
        variants = self._variants(part)
        if not variants:
            raise InputError(f"{self.folder / part} has no safetensors weights", WHOLE)
        return None if None in variants else FP16

    def files_of(self, part: str) -> list[Path]:
        """Return the files of a part's weights: one file or all shards.

        Raises:
            InputError: There are no weights that rapm reads.
        """
        return [self.folder / name for name in self._variants(part)[self.variant(part)]]

    def check(self, part: str) -> None:
        """Check that a part's weights are complete, by the headers of their files.

        Raises:
            InputError: A file is missing or truncated.
        """
        from safetensors import SafetensorError, safe_open

        if self.checkpoint:
            return  # find.py has checked the checkpoint
        paths = self.files_of(part)
        for path in paths:
            try:
                with safe_open(path, "pt"):
                    pass
            except (OSError, SafetensorError) as error:
                raise InputError(f"{path} is not a whole safetensors file", "copy or download it again") from error
            if (count := re.search(r"-of-(\d+)", path.name)) and len(paths) < int(count[1]):
                raise InputError(f"{path.parent} has {len(paths)} of {int(count[1])} files of weights", WHOLE)

    def plain_names(self) -> dict[str, str]:
        """Map the names of the folder's files to their names without a variant.

        Weights of another variant or in another format are left out.
        """
        inside = self.files or [path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*"))]
        names = {}
        for name in inside:
            part, _, file = name.rpartition("/")
            match = NAME.fullmatch(file) or INDEX.fullmatch(file)
            if not OTHERS.search(name) or (match and part and match[1] == self.variant(part)):
                names[name] = name.replace(f".{FP16}", "") if match else name
        return {name: plain for name, plain in names.items() if (self.folder / name).is_file()}

    def _variants(self, part: str) -> dict[str | None, list[str]]:
        """Return the names of a part's weight files by variant."""
        inside = self.files or [f"{part}/{path.name}" for path in sorted((self.folder / part).glob("*"))]
        variants = defaultdict(list)
        for name in inside:
            if match := re.fullmatch(rf"{part}/{NAME.pattern}", name):
                variants[match[1]].append(name)
        return variants


def read_json(path: Path) -> dict[str, Any]:
    """Read a configuration file of a base.

    Raises:
        InputError: The file is missing or holds no JSON object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or cannot be read", WHOLE) from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is no table of settings", WHOLE)
    return record

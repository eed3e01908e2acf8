"""Where a base's files are: a folder in diffusers layout, or a checkpoint with such a folder's configurations."""

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import InputError

FP16 = "fp16"  # what repositories call the variant in half precision
SHARD = r"(?:-\d+-of-\d+)?"
NAME = re.compile(rf"(?:diffusion_pytorch_)?model{SHARD}(?:\.({FP16}))?{SHARD}\.safetensors")  # of a part's weights
INDEX = re.compile(rf"(?:diffusion_pytorch_)?model\.safetensors\.index(?:\.({FP16}))?\.json")  # of shards
OTHERS = re.compile(
    r"\.(safetensors|bin|msgpack|onnx\w*|h5|ckpt|pth?)(\.index(\.\w+)?\.json)?$"
)  # weights, of any kind
WHOLE = "give a whole Stable Diffusion XL or 1.5 with safetensors weights"


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
        """The variant of a part's weights that is read: None is full precision, which goes first where it is there.

        Raises:
            InputError: There are no weights that rapm reads.
        """
        variants = self._variants(part)
        if not variants:
            raise InputError(f"{self.folder / part} has no safetensors weights", WHOLE)
        return None if None in variants else FP16

    def files_of(self, part: str) -> list[Path]:
        """The files of a part's weights, in one or in shards.

        Raises:
            InputError: There are no weights that rapm reads.
        """
        return [self.folder / name for name in self._variants(part)[self.variant(part)]]

    def check(self, part: str) -> None:
        """See that a part's weights are all there; reads no more than the headers of a folder's files.

        Raises:
            InputError: A file is missing or cut off.
        """
        from safetensors import SafetensorError, safe_open

        if self.checkpoint:
            return  # it was looked into when it was found
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
        """Names of the folder's files, each with its name in a folder that has one variant of each part.

        Weights that rapm does not read are left out: of another variant, or in another format.
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
        """Names of a part's files of weights, by variant."""
        inside = self.files or [f"{part}/{path.name}" for path in sorted((self.folder / part).glob("*"))]
        variants = defaultdict(list)
        for name in inside:
            if match := re.fullmatch(rf"{part}/{NAME.pattern}", name):
                variants[match[1]].append(name)
        return variants


def read_json(path: Path) -> dict[str, Any]:
    """A configuration file of a base.

    Raises:
        InputError: It is missing, or is not one.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is missing or cannot be read", WHOLE) from error
    if not isinstance(record, dict):
        raise InputError(f"{path} is no table of settings", WHOLE)
    return record

"""Networks from transformers: their files on the hub or in a folder, and how to load them."""

import hashlib
import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases.hub import Selection, fetch
from rapm_cli.bases.hub.selection import LackingError
from rapm_cli.bases.weights import read_json
from rapm_cli.core.common.errors import ConfigError, InputError, is_out_of_memory
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.storage.files import file_sha256

CONFIGS = ("config.json", "preprocessor_config.json")
TEXT = ("tokenizer.json", "vocab.json", "merges.txt", "tokenizer_config.json", "special_tokens_map.json")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the second is a pickle, of which only tensors are read
REMEDY = "give a transformers model: ORG/NAME[@REVISION] on the hub, or a folder"


@dataclass(frozen=True)
class Located:
    """Files of a network.

    Args:
        folder: Folder of the files.
        identity: Text that identifies the network and its weights.
    """

    folder: Path
    identity: str

    def settings(self) -> dict[str, Any]:
        """Return the network's image preprocessing settings.

        Raises:
            InputError: The file cannot be read.
        """
        return read_json(self.folder / "preprocessor_config.json")

    def load(self, kind: Any) -> Any:
        """Return the network, on the CPU, in float32.

        Args:
            kind: Class from transformers.

        Raises:
            InputError: The files are not those of such a network.
        """
        import transformers

        transformers.utils.logging.disable_progress_bar()
        try:
            made, report = kind.from_pretrained(
                str(self.folder), local_files_only=True, output_loading_info=True, dtype="float32"
            )
        except (OSError, ValueError, TypeError, LookupError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            raise InputError(f"{self.folder} cannot be loaded: {str(error).strip()[:200]}", REMEDY) from error
        if report["missing_keys"]:
            raise InputError(f"{self.folder} lacks weights, first {min(report['missing_keys'])}", REMEDY)
        return made.requires_grad_(False).eval()


def locate(source: str, reporter: Reporter) -> Located:
    """Return a network's files; missing files are downloaded.

    Args:
        source: `ORG/NAME[@REVISION]` on the hub, or a folder.
        reporter: Reporter of downloads.

    Raises:
        ConfigError: The source is neither a repository nor a folder.
        WeightsError: Files are missing and cannot be downloaded.
    """
    if Path(source).is_dir():
        return Located(Path(source), f"{Path(source).name} {_digest(Path(source))}")
    match = re.fullmatch(r"([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", source)
    if match is None:
        raise ConfigError(f"{source} is neither a folder nor a repository", REMEDY)
    snapshot = fetch(match[1], match[2], Selection(_choose, (*CONFIGS, *TEXT, WEIGHTS[0])), reporter)
    return Located(snapshot.folder, f"{snapshot.repo}@{snapshot.commit[:12]}")


def _choose(names: Collection[str], cached: Collection[str]) -> list[str]:
    for name in CONFIGS:
        if name not in names:
            raise LackingError(name)
    for known in (cached, names):
        if weights := [name for name in WEIGHTS if name in known][:1]:
            return [*CONFIGS, *(name for name in TEXT if name in names), *weights]
    raise LackingError(WEIGHTS[0])


def _digest(folder: Path) -> str:
    """Return a hash of the files that features depend on: weights, network and image settings, tokenizer."""
    weights = [name for name in WEIGHTS if (folder / name).is_file()][:1]
    if not weights:
        raise InputError(f"{folder} has no {' or '.join(WEIGHTS)}", REMEDY)
    names = [name for name in (*weights, *CONFIGS, *TEXT) if (folder / name).is_file()]
    lines = "".join(f"{file_sha256(folder / name)}  {name}\n" for name in names)
    return hashlib.sha256(lines.encode()).hexdigest()[:12]

"""Tensors to a safetensors file that other users of the machine can read too, verified by reading it back."""

import json
import os
import struct
from pathlib import Path

from torch import Tensor

from rapm_cli.core.errors import DiskError, InputError, VerificationError
from rapm_cli.core.files import replacing
from rapm_cli.formats.header import read_header


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file whole or not at all, with the permissions of the user's umask.

    Args:
        path: File to write; its folder is made.
        tensors: What to write.
        metadata: Of the header.

    Raises:
        DiskError: The file cannot be written.
        VerificationError: What was read back differs from what was written; nothing is left.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata)
            _sort_header(temporary)
            temporary.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
            if not _reads_back(temporary, tensors, metadata):
                raise VerificationError(f"{path} did not read back as it was written", "check the disk")
    except (OSError, SafetensorError) as error:
        raise DiskError.of(error, path) from error


def _reads_back(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> bool:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        back, is_same = load_file(path), read_header(path).metadata == metadata
    except (SafetensorError, InputError):
        return False
    return is_same and back.keys() == tensors.keys() and all(back[name].equal(tensors[name]) for name in back)


def _sort_header(path: Path) -> None:
    """Put the metadata in order, in place: safetensors leaves theirs to chance, and the file's sha256 with it."""
    with path.open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        metadata = dict(sorted(header.pop("__metadata__", {}).items()))
        text = json.dumps({"__metadata__": metadata, **header}, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:
            file.seek(8)
            file.write(text.ljust(length))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Tensors to a safetensors file that other users of the machine can read too, verified by reading it back."""

import os
from pathlib import Path

from torch import Tensor

from rapm_cli.core.errors import DiskError, VerificationError
from rapm_cli.formats.header import read_header


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file, with the permissions of the user's umask.

    Args:
        path: File to write; its folder is made.
        tensors: What to write.
        metadata: Of the header.

    Raises:
        DiskError: The file cannot be written.
        VerificationError: What was read back differs from what was written; the file is removed.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file, save_file

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path, metadata)
        path.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
    except (OSError, SafetensorError) as error:
        raise DiskError.of(error, path) from error
    back, is_same = load_file(path), read_header(path).metadata == metadata
    if not is_same or back.keys() != tensors.keys() or not all(back[name].equal(tensors[name]) for name in back):
        path.unlink()
        raise VerificationError(f"{path} did not read back as it was written and was removed", "check the disk")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask

"""Tensors to a safetensors file, verified by reading it back."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rapm_cli.core.common.errors import DiskError
from rapm_cli.core.storage.files import replacing
from rapm_cli.formats.stream import NAMES, Piece, verify_pieces, write_pieces


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file whole or not at all; equal tensors and metadata make equal files.

    Args:
        path: File to write; its folder is made.
        tensors: What to write, of floating point.
        metadata: Of the header; `DIGEST` in it becomes the sha256 of all data.

    Raises:
        DiskError: The file cannot be written.
        VerificationError: What was read back differs from what was written; nothing is left.
    """
    pieces = {
        name: Piece((), NAMES[value.dtype], tuple(value.shape), lambda value=value: value)  # type: ignore[misc]
        for name, value in tensors.items()
    }
    try:
        with replacing(path) as temporary:
            write_pieces(temporary, pieces, metadata)
            verify_pieces(temporary, pieces, metadata)
    except OSError as error:
        raise DiskError.of(error, path) from error

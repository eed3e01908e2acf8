"""A safetensors file written tensor by tensor from others, which may be larger than memory."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.common.errors import InputError, VerificationError
from rapm_cli.formats.header import DTYPE_BYTES, TensorInfo, read_header

DIGEST = "0" * 64  # stands in metadata for the sha256 of the data
CHUNK = 2**24  # bytes that are copied at once
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file."""

    path: Path
    info: TensorInfo

    def chunks(self) -> Iterator[bytes]:
        """Its bytes."""
        with self.path.open("rb") as file:
            file.seek(self.info.start)
            left = self.info.nbytes
            while left:
                chunk = file.read(min(CHUNK, left))
                if not chunk:
                    raise OSError(f"{self.path} ends before its header says")
                left -= len(chunk)
                yield chunk

    def read(self) -> Tensor:
        """Its values, of floating point, in a memory of their own."""
        data, dtype = bytearray(b"".join(self.chunks())), DTYPES[self.info.dtype]
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(self.info.shape)


@dataclass(frozen=True)
class Piece:
    """A tensor to write.

    Args:
        sources: Where its bytes lie, one after the other.
        dtype: As safetensors names it.
        shape: Of what is written.
        make: Its values instead of the sources' bytes; in any floating dtype, for it to be cast.
    """

    sources: Sequence[Stored]
    dtype: str
    shape: tuple[int, ...]
    make: Callable[[], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Its size in the file."""
        return torch.Size(self.shape).numel() * DTYPE_BYTES[self.dtype]

    def chunks(self) -> Iterator[bytes]:
        """Its bytes."""
        if self.make is None:
            for source in self.sources:
                yield from source.chunks()
        else:
            made = self.make().to(DTYPES[self.dtype]).reshape(-1)
            yield made.view(torch.uint8).numpy().tobytes()


def _nothing(size: int) -> None:
    """Nobody wants to be told."""


def write_pieces(
    path: Path, pieces: dict[str, Piece], metadata: dict[str, str], advance: Callable[[int], object] = _nothing
) -> None:
    """Write a file; not atomic, and not verified.

    Args:
        path: Of the file.
        pieces: By name.
        metadata: Of the header; `DIGEST` in it becomes the sha256 of all data.
        advance: Is told of every tensor's bytes once they are written.
    """
    ordered = dict(sorted(pieces.items(), key=lambda item: (-DTYPE_BYTES[item[1].dtype], item[0])))  # aligned
    header, digest = _header(ordered, metadata), hashlib.sha256()
    with path.open("wb") as file:
        file.write(header)
        for name, piece in ordered.items():
            written = 0
            for chunk in piece.chunks():
                digest.update(chunk)
                written += file.write(chunk)
            if written != piece.nbytes:
                raise ValueError(f"{name} was to have {piece.nbytes} bytes")
            advance(written)
        file.seek(0)
        file.write(header.replace(DIGEST.encode(), digest.hexdigest().encode()))


def verify_pieces(
    path: Path, pieces: dict[str, Piece], metadata: dict[str, str], advance: Callable[[int], object] = _nothing
) -> None:
    """Read a file back: every byte is what it is made from, and every number is finite.

    Args:
        path: Of the file.
        pieces: That it was written from.
        metadata: Of the header, as it was written.
        advance: Is told of every tensor's bytes once they are compared.

    Raises:
        VerificationError: Something differs, or is not finite.
    """
    try:
        header = read_header(path)
    except InputError as error:
        raise VerificationError(f"{path} did not read back as a safetensors file", "check the disk") from error
    if header.tensors.keys() != pieces.keys() or header.metadata.keys() != metadata.keys():
        raise VerificationError(f"{path} did not read back with the names it was written with", "check the disk")
    for name, piece in pieces.items():
        found = Stored(path, header.tensors[name])
        is_same = (found.info.dtype, found.info.shape) == (piece.dtype, piece.shape)
        if not is_same or b"".join(found.chunks()) != b"".join(piece.chunks()):
            raise VerificationError(f"{path} did not read back as it was written, first {name}", "check the disk")
        if piece.dtype in DTYPES and not found.read().isfinite().all():
            raise VerificationError(f"{name} has values that are not finite", "give another base or LoRA")
        advance(piece.nbytes)


def _header(pieces: dict[str, Piece], metadata: dict[str, str]) -> bytes:
    record: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, piece in pieces.items():
        record[name] = {"dtype": piece.dtype, "shape": list(piece.shape), "data_offsets": [end, end + piece.nbytes]}
        end += piece.nbytes
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text

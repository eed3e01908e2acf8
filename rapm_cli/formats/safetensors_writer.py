"""Write safetensors files tensor by tensor, so that a model may be larger than memory, and verify them."""

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rapm_cli.core.common.errors import DiskError, InputError, VerificationError
from rapm_cli.core.storage.files import replacing
from rapm_cli.formats.header import DTYPE_BYTES, TensorInfo, read_header

DIGEST_PLACEHOLDER = "0" * 64  # in metadata; the writer replaces it by the sha256 of the data
CHUNK_BYTES = 2**24  # copied at once
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file; nothing is read before it is asked for.

    Args:
        path: Safetensors file.
        info: Dtype, shape and place of the tensor in the file.
    """

    path: Path
    info: TensorInfo

    def chunks(self) -> Iterator[bytes]:
        """Yield the tensor's bytes, at most `CHUNK_BYTES` at once."""
        with self.path.open("rb") as file:
            file.seek(self.info.start)
            left = self.info.nbytes
            while left:
                chunk = file.read(min(CHUNK_BYTES, left))
                if not chunk:
                    raise OSError(f"{self.path} ends before its header says")
                left -= len(chunk)
                yield chunk

    def read(self) -> Tensor:
        """Return the values of a floating tensor, in memory of their own."""
        data, dtype = bytearray(b"".join(self.chunks())), DTYPES[self.info.dtype]
        return (torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)).reshape(self.info.shape)


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write.

    Args:
        sources: Stored tensors whose bytes are written, one after the other, where `compute` is None.
        dtype: Dtype in the written file, as safetensors names it.
        shape: Shape in the written file.
        compute: Function that returns the values, in any floating dtype; the writer casts them to `dtype`.
    """

    sources: Sequence[StoredTensor]
    dtype: str
    shape: tuple[int, ...]
    compute: Callable[[], Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return torch.Size(self.shape).numel() * DTYPE_BYTES[self.dtype]

    def values(self) -> Tensor:
        """Return the values of a tensor that is computed, in the dtype of the written file."""
        assert self.compute is not None
        return self.compute().to(DTYPES[self.dtype])

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes to write."""
        if self.compute is None:
            for source in self.sources:
                yield from source.chunks()
        else:
            yield self.values().reshape(-1).view(torch.uint8).numpy().tobytes()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write one file from tensors in memory, completely or not at all. Equal arguments give equal bytes.

    Args:
        path: File to write; its folder is made.
        tensors: Floating tensors, by name.
        metadata: Metadata of the header; the sha256 of all data replaces `DIGEST_PLACEHOLDER` in it.

    Raises:
        DiskError: The file cannot be written.
        VerificationError: The bytes read back differ from those written; no file is left.
    """
    outputs = {
        name: OutputTensor((), DTYPE_NAMES[value.dtype], tuple(value.shape), lambda value=value: value)  # type: ignore[misc]
        for name, value in tensors.items()
    }
    try:
        with replacing(path) as temporary:
            stream_tensors(temporary, outputs, metadata)
            verify_tensors(temporary, outputs, metadata)
    except OSError as error:
        raise DiskError.of(error, path) from error


def _no_progress(size: int) -> None:
    """Report nothing."""


def stream_tensors(
    path: Path,
    outputs: dict[str, OutputTensor],
    metadata: dict[str, str],
    advance: Callable[[int], object] = _no_progress,
) -> None:
    """Write a file with one tensor in memory at a time. The write is not atomic, and nothing is verified.

    Args:
        path: File to make; a link of that name is not followed.
        outputs: Tensors to write, by name.
        metadata: Metadata of the header; the sha256 of all data replaces `DIGEST_PLACEHOLDER` in it.
        advance: Function that gets the size of every written tensor, in bytes.
    """
    ordered = dict(sorted(outputs.items(), key=lambda item: (-DTYPE_BYTES[item[1].dtype], item[0])))  # aligned
    header, digest = _header(ordered, metadata), hashlib.sha256()
    with path.open("xb") as file:
        file.write(header)
        for name, output in ordered.items():
            written = 0
            for chunk in output.chunks():
                digest.update(chunk)
                written += file.write(chunk)
            if written != output.nbytes:
                raise ValueError(f"{name} has {written} bytes, not the {output.nbytes} of its shape")
            advance(written)
        file.seek(0)
        file.write(header.replace(DIGEST_PLACEHOLDER.encode(), digest.hexdigest().encode()))


def verify_tensors(
    path: Path,
    outputs: dict[str, OutputTensor],
    metadata: dict[str, str],
    advance: Callable[[int], object] = _no_progress,
) -> None:
    """Read a file back: compare every byte with its source, and check that every number is finite.

    Args:
        path: File to verify.
        outputs: Tensors that the file was written from.
        metadata: Metadata that the file was written with.
        advance: Function that gets the size of every compared tensor, in bytes.

    Raises:
        VerificationError: A byte differs, or a value is not finite.
    """
    try:
        header = read_header(path)
    except InputError as error:
        raise VerificationError(f"{path} did not read back as a safetensors file", "check the disk") from error
    if header.tensors.keys() != outputs.keys() or header.metadata.keys() != metadata.keys():
        raise VerificationError(f"{path} did not read back with the names it was written with", "check the disk")
    for name, output in outputs.items():
        found = StoredTensor(path, header.tensors[name])
        is_same = (found.info.dtype, found.info.shape) == (output.dtype, output.shape)
        if not is_same or b"".join(found.chunks()) != b"".join(output.chunks()):
            raise VerificationError(f"{path} did not read back as it was written, first {name}", "check the disk")
        if output.dtype in DTYPES and not found.read().isfinite().all():
            raise VerificationError(f"{name} has values that are not finite", "give another base or LoRA")
        advance(output.nbytes)


def _header(outputs: dict[str, OutputTensor], metadata: dict[str, str]) -> bytes:
    record: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, output in outputs.items():
        record[name] = {"dtype": output.dtype, "shape": list(output.shape), "data_offsets": [end, end + output.nbytes]}
        end += output.nbytes
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text

"""Read and check the header of a safetensors file, without torch."""

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

SUFFIX = ".safetensors"
MAX_HEADER = 100_000_000  # bytes; the format's own limit
MAX_TENSORS = 100_000  # a complete SDXL has under 3,000
DTYPE_BYTES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "U16": 2, "U32": 4, "U64": 8, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
NUMBERS = {"F16": "e", "F32": "f", "F64": "d", "I64": "q", "I32": "i", "I16": "h"}  # by dtype, as struct names them
REMEDY = "give a file in safetensors format"
LOOKALIKES = (  # first bytes, kind and remedy of files that are often given as safetensors
    (b"version https://git-lfs", "a git-lfs pointer, not weights", "run: git lfs pull"),
    (b"PK\x03\x04", "a zip, as torch.save writes, which can hold code", "ask for a safetensors file"),
    (b"\x80", "a pickle, which can run code when it is opened", "ask for a safetensors file"),
    (b"<", "a web page or XML", "download the file itself"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One entry of a header.

    Args:
        dtype: Dtype as safetensors names it.
        shape: Shape of the tensor.
        start: Offset of the tensor's bytes from the start of the file.
    """

    dtype: str
    shape: tuple[int, ...]
    start: int = 0

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in the file, in bytes."""
        return self.count * DTYPE_BYTES[self.dtype]


@dataclass(frozen=True)
class Header:
    """The header of a safetensors file.

    Args:
        tensors: Dtype, shape and place of each tensor, by name.
        metadata: Texts by key.
        file_bytes: Size of the whole file.
    """

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header; the values are not read.

    Raises:
        InputError: The file cannot be read, or is not a complete safetensors file.
    """
    regular_file(path, "check the path")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(32)
            length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise _not_safetensors(path, start)
            file.seek(8)
            record: dict[str, Any] = json.loads(file.read(length), object_pairs_hook=_without_duplicates)
        metadata = record.pop("__metadata__", {})
        tensors, end = _read_entries(record, 8 + length)
        if not all(isinstance(text, str) for item in metadata.items() for text in item):
            raise ValueError("its metadata are not text")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = f": {error}" if type(error) is ValueError else ""
        raise InputError(f"{path} is not a safetensors file: its header is malformed{reason}", REMEDY) from error
    if size != 8 + length + end:
        raise InputError(
            f"{path} is truncated or padded: its header describes {8 + length + end:,} bytes, the file has {size:,}",
            "copy or download it again",
        )
    return Header(tensors, metadata, size)


def _read_entries(record: dict[str, Any], data: int) -> tuple[dict[str, TensorInfo], int]:
    """Return every entry, and the size of all data.

    Args:
        record: Parsed header, without metadata.
        data: Offset of the data from the start of the file.

    Raises:
        ValueError: The tensors leave gaps, overlap, or differ in size from their shapes.
    """
    if len(record) > MAX_TENSORS:
        raise ValueError(f"it lists {len(record):,} tensors")
    end = 0
    for name, entry in sorted(record.items(), key=lambda item: tuple(item[1]["data_offsets"])):
        first, last = entry["data_offsets"]
        shape = entry["shape"]
        if not all(type(number) is int and number >= 0 for number in (first, last, *shape)):
            raise ValueError(f"{name} has no sizes")
        if first != end or last - first != math.prod(shape) * DTYPE_BYTES[entry["dtype"]]:
            raise ValueError(f"{name} overlaps another tensor, or is not as long as its shape")
        end = last
    found = {
        name: TensorInfo(entry["dtype"], tuple(entry["shape"]), data + entry["data_offsets"][0])
        for name, entry in record.items()
    }
    return found, end


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        raise ValueError("it names a tensor twice")
    return record


def read_numbers(path: Path, one: TensorInfo) -> list[float]:
    """Return the values of a small tensor, read from its bytes; empty for a dtype of other numbers.

    Args:
        path: File of the tensor.
        one: Entry of the file's header.
    """
    if one.dtype not in (*NUMBERS, "BF16"):
        return []
    with path.open("rb") as file:
        file.seek(one.start)
        data = file.read(one.nbytes)
    if one.dtype == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[k : k + 2] for k in range(0, len(data), 2))
    return list(map(float, struct.unpack(f"<{one.count}{NUMBERS.get(one.dtype, 'f')}", data)))


def has_header(start: bytes) -> bool:
    """Return True for the first bytes of a safetensors file: the length of its header, and the header's `{`."""
    return start[8:9] == b"{" and 2 <= struct.unpack("<Q", start[:8])[0] <= MAX_HEADER


def is_lookalike(start: bytes) -> bool:
    """Return True for the first bytes of a file that is often given as safetensors, and is something else."""
    return any(start.startswith(sign) for sign, _, _ in LOOKALIKES)


def _not_safetensors(path: Path, start: bytes) -> InputError:
    if has_header(start):
        return InputError(f"{path} is truncated: it ends within its header", "copy or download it again")
    for sign, kind, remedy in LOOKALIKES:
        if start.startswith(sign):
            return InputError(f"{path} is {kind}, not a safetensors file", remedy)
    return InputError(f"{path} is not a safetensors file", REMEDY)

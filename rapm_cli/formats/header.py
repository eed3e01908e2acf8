"""The header of a safetensors file, read without torch."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.core.errors import InputError

MAX_HEADER = 100_000_000  # bytes, the format's own limit
DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class TensorInfo:
    """Type and shape of one stored tensor."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements."""
        product = 1
        for size in self.shape:
            product *= size
        return product


@dataclass(frozen=True)
class Header:
    """What a safetensors file says of itself."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    file_bytes: int


def read_header(path: Path) -> Header:
    """Read and check the header; the values are not touched.

    Raises:
        InputError: The file cannot be read, or is no whole safetensors file.
    """
    remedy = "give a LoRA in safetensors format"
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= length <= min(MAX_HEADER, size - 8):
                raise InputError(f"{path} is not a safetensors file", remedy)
            record: dict[str, Any] = json.loads(file.read(length))
        metadata = record.pop("__metadata__", {})
        tensors = {name: TensorInfo(entry["dtype"], tuple(entry["shape"])) for name, entry in record.items()}
        end = max((entry["data_offsets"][1] for entry in record.values()), default=0)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a safetensors file: its header is malformed", remedy) from error
    if size != 8 + length + end:
        raise InputError(
            f"{path} is truncated or padded: its header describes {8 + length + end:,} bytes, the file has {size:,}",
            "copy or download it again",
        )
    return Header(tensors, metadata, size)

"""What a PNG says of itself, read without decoding it."""

import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

MAGIC = b"\x89PNG\r\n\x1a\n"
MAX_TEXT = 2**20  # bytes of a chunk
REMEDY = "give a PNG"


@dataclass(frozen=True)
class Png:
    """Width and height in pixels, and texts by keyword."""

    width: int
    height: int
    texts: dict[str, str]


def read_png(path: Path) -> Png:
    """The size and the texts of a PNG.

    Raises:
        InputError: It is none, or is damaged.
    """
    regular_file(path, REMEDY)
    size: tuple[int, int] | None = None
    texts: dict[str, str] = {}
    try:
        with path.open("rb") as file:
            if file.read(8) != MAGIC:
                raise InputError(f"{path} is no PNG", REMEDY)
            kind = b""
            while kind != b"IEND":
                length, kind = struct.unpack(">I4s", file.read(8))
                if kind not in (b"IHDR", b"tEXt", b"iTXt") or length > MAX_TEXT:
                    file.seek(length + 4, 1)
                    continue
                data = file.read(length)
                if zlib.crc32(kind + data) != struct.unpack(">I", file.read(4))[0]:
                    raise InputError(f"{path} is damaged: a checksum differs", "copy it again")
                if kind == b"IHDR":
                    size = struct.unpack(">II", data[:8])
                else:
                    texts |= _text(kind, data)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}", "check the path") from error
    except (struct.error, ValueError) as error:
        raise InputError(f"{path} is no whole PNG", "copy it again") from error
    if size is None:
        raise InputError(f"{path} is no whole PNG", "copy it again")
    return Png(*size, texts)


def _text(kind: bytes, data: bytes) -> dict[str, str]:
    key, _, rest = data.partition(b"\0")
    if kind == b"tEXt":
        return {key.decode("latin-1"): rest.decode("latin-1")}
    is_packed, _, (_language, _, rest) = rest[:1] == b"\1", rest[1:2], rest[2:].partition(b"\0")
    _translated, _, text = rest.partition(b"\0")
    return {} if is_packed else {key.decode("latin-1"): text.decode()}

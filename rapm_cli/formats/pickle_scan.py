"""List the imports of a pickle from its opcodes, without opening it."""

import io
import pickletools
import warnings
import zipfile
from pathlib import Path

from rapm_cli.core.common.errors import InputError
from rapm_cli.core.storage.files import regular_file

SAFE_IMPORTS = {  # a state dict needs no others
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.LongStorage", "torch.IntStorage",
    "torch.DoubleStorage", "torch.BoolStorage", "torch.ByteStorage",
    "torch.storage.UntypedStorage", "torch.serialization._get_layout",
}  # fmt: skip
MAX_BYTES = 2**28
STRINGS = ("UNICODE", "STRING")
REMEDY = "ask for a safetensors file"
PARSE_ERRORS = (ValueError, IndexError, EOFError, KeyError)  # pickletools raises these for other bytes


def is_pickle(start: bytes) -> bool:
    """Return True for the first bytes of a pickle, or of the zip that torch.save writes."""
    return start.startswith(b"\x80") or start.startswith(b"PK\x03\x04")


def pickle_imports(path: Path) -> list[str]:
    """Return the names that a pickle imports, such as `torch._utils._rebuild_tensor_v2`, sorted.

    A name that the opcodes do not show contains `?`.

    Raises:
        InputError: The file is not a pickle, or is damaged.
    """
    regular_file(path, REMEDY)
    found: set[str] = set()
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as file:
                return sorted(_imports(file.read(MAX_BYTES)))
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".pkl")]
            if not names or any(archive.getinfo(name).file_size > MAX_BYTES for name in names):
                raise ValueError("it has no pickle of at most 256 MiB")
            for name in names:
                found |= _imports(archive.read(name))
    except (*PARSE_ERRORS, OSError, zipfile.BadZipFile, RuntimeError) as error:  # RuntimeError of a zip with a password
        raise InputError(f"{path} is not a complete pickle", REMEDY) from error
    return sorted(found)


def _imports(data: bytes) -> set[str]:
    """Return the imports of all pickles in a row: torch's older format is several pickles, then the numbers."""
    file, found = io.BytesIO(data), set[str]()
    with warnings.catch_warnings(action="ignore"):  # bytes that are not a pickle can contain invalid escapes
        found |= _imports_of_one(file)
        while file.tell() < len(data):
            try:
                found |= _imports_of_one(file)
            except PARSE_ERRORS:
                break  # the numbers begin here
    return found


def _imports_of_one(file: io.BytesIO) -> set[str]:
    found: set[str] = set()
    recent: list[str] = []
    memo: dict[int, str] = {}
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            found.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            found.add(".".join(["?", *recent][-2:]))
        elif opcode.name.startswith("EXT"):
            found.add(f"?extension {argument}")
        elif any(kind in opcode.name for kind in STRINGS):
            recent.append(str(argument))
        elif opcode.name in ("POP", "POP_MARK", "DUP"):
            recent += ["?", "?"]  # the strings before may be on top again
        elif opcode.name in ("MEMOIZE", "BINPUT", "LONG_BINPUT", "PUT"):
            memo[len(memo) if argument is None else int(argument)] = recent[-1] if recent else "?"
        elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
            recent.append(memo.get(int(str(argument)), "?"))
    return found

"""What a pickle would import when it is opened, by its opcodes; nothing of it is run."""

import pickletools
import zipfile
from pathlib import Path

from rapm_cli.core.errors import InputError
from rapm_cli.core.files import regular_file

SAFE = {  # what state dicts need
    "collections.OrderedDict", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter",
    "torch.FloatStorage", "torch.HalfStorage", "torch.BFloat16Storage", "torch.LongStorage", "torch.IntStorage",
    "torch.DoubleStorage", "torch.BoolStorage", "torch.storage.UntypedStorage", "torch.serialization._get_layout",
}  # fmt: skip
MAX_BYTES, MAX_OPCODES = 2**28, 10**7
STRINGS = ("UNICODE", "STRING")
REMEDY = "ask for a safetensors file"


def is_pickle(start: bytes) -> bool:
    """True for the first bytes of a pickle, or of the zip that torch.save writes."""
    return start.startswith(b"\x80") or start.startswith(b"PK\x03\x04")


def imports_of(path: Path) -> list[str]:
    """The names that it imports, such as `torch._utils._rebuild_tensor_v2`, sorted.

    Raises:
        InputError: It is no pickle, or is damaged.
    """
    found: set[str] = set()
    recent: list[str] = []
    memo: dict[int, str] = {}
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(_pickle(path))):
            if count > MAX_OPCODES:
                raise ValueError("it is too long")
            if opcode.name == "GLOBAL":
                found.add(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":
                found.add(".".join(recent[-2:]) if len(recent) > 1 else "?")
            elif any(kind in opcode.name for kind in STRINGS):
                recent.append(str(argument))
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = recent[-1] if recent else "?"
            elif opcode.name in ("BINPUT", "LONG_BINPUT", "PUT"):
                memo[int(str(argument))] = recent[-1] if recent else "?"
            elif opcode.name in ("BINGET", "LONG_BINGET", "GET"):
                recent.append(memo.get(int(str(argument)), "?"))
    except (ValueError, IndexError, EOFError, OSError, zipfile.BadZipFile, KeyError, NotImplementedError) as error:
        raise InputError(f"{path} is no whole pickle", REMEDY) from error
    return sorted(found)


def _pickle(path: Path) -> bytes:
    regular_file(path, REMEDY)
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return file.read(MAX_BYTES)
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in [*archive.namelist(), ""] if name.endswith("data.pkl") or not name)
        if archive.getinfo(name).file_size > MAX_BYTES:
            raise ValueError("it is too long")
        return archive.read(name)

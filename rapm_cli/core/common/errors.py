"""Errors that a user can mend: one line of what happened, one of what to do, and an exit code."""

import errno
from pathlib import Path

UNHARMED = "nothing was left half done"  # of a stop that nobody knows more about
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",  # cuBLAS's and cuDNN's
)
_FULL_WORDS = ("PytorchStreamWriter failed writing", "unexpected pos", *(f"os error {code}" for code in _FULL))


class RapmError(Exception):
    """An error with a remedy; anything else that escapes is a bug of ours.

    Args:
        message: What happened, naming the file or value.
        remedy: What to type or change; empty only where nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ConfigError(RapmError):
    """A setting is unknown, of the wrong type, out of range or in conflict with another."""

    exit_code = 2


class InputError(RapmError):
    """A file was refused: missing, unreadable, corrupt, or not what it should be."""

    exit_code = 3


class DamagedError(InputError):
    """A commit is not what was written.

    Args:
        place: Folder of the commit.
        damage: Which file, and what is wrong with it.
    """

    def __init__(self, place: Path, damage: str) -> None:
        super().__init__(f"{place} is damaged: {damage}", "restore it from a copy, or remove it")
        self.place, self.damage = place, damage


class WeightsError(RapmError):
    """Weights are missing and cannot be fetched."""

    exit_code = 4


class DiskError(RapmError):
    """The disk is full or cannot be written."""

    exit_code = 5
    is_full = False

    @classmethod
    def of(cls, error: Exception, path: object, what: str = "written") -> "DiskError":
        """The error because of which `path` cannot be written, in the words of the system."""
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        is_full = is_disk_full(error)
        free = "free space, or " if is_full else ""
        made = cls(f"{path} cannot be {what}: {reason}", f"{free}name a place that can be {what}")
        made.is_full = is_full
        return made

    @classmethod
    def full(cls, place: object, what: str, needed: int, free: int) -> "DiskError":
        """The error of a disk that has too little room for `what`."""
        made = cls(f"{what} needs {needed / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free at {place}", "free space")
        made.is_full = True
        return made


class OutOfMemoryError(RapmError):
    """The device is out of memory."""

    exit_code = 6


class DivergedError(RapmError):
    """Training met a value that is not finite."""

    exit_code = 7


class LockedError(RapmError):
    """Another process holds the run."""

    exit_code = 8


class Stopped(BaseException):  # as KeyboardInterrupt: no error, and no `except Exception` may catch it
    """A signal asked the process to stop.

    Args:
        number: Of the signal.
        message: What is saved.
        remedy: How to go on.
    """

    def __init__(self, number: int, message: str = UNHARMED, remedy: str = "") -> None:
        super().__init__(message)
        self.number, self.message, self.remedy = number, message, remedy

    @property
    def exit_code(self) -> int:
        """129, 130 or 143, as a shell has it."""
        return 128 + self.number


class PeerEnded(Stopped):
    """Another process of the job has ended, so that this one cannot go on.

    Args:
        message: Which, and why; empty where that one tells it itself.
        code: The exit code.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(0, message)
        self._code = code

    @property
    def exit_code(self) -> int:
        """Of the process that has ended."""
        return self._code


class VerificationError(RapmError):
    """A written file, read back, is not what was written."""

    exit_code = 9


def as_told(error: Exception) -> RapmError:
    """An error as users are told it; one that nothing expects is a bug of ours."""
    if isinstance(error, RapmError):
        return error
    filename = getattr(error, "filename", None)
    if is_disk_full(error) or (isinstance(error, OSError) and (filename or error.errno == errno.EROFS)):
        return DiskError.of(error, filename or "a file", "read or written")
    if is_out_of_memory(error):
        return OutOfMemoryError("out of memory", "close other programs on the device")
    reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return RapmError(f"this is a bug of rapm: {reason}", "RAPM_DEBUG=1 shows where")


def is_out_of_memory(error: BaseException) -> bool:
    """True where memory ran out, of a device or of the machine, also in the words of torch."""
    is_torchs = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _NO_MEMORY_WORDS)
    return is_torchs or isinstance(error, MemoryError)


def require_shortage(error: RuntimeError) -> RuntimeError:
    """Raise an error again, unless it says that memory ran out, in whatever words.

    Returns:
        The error without its frames, which hold tensors that are in the way of another try.
    """
    if not is_out_of_memory(error):
        raise error
    return error.with_traceback(None)


def is_disk_full(error: BaseException) -> bool:
    """True for a full disk, a spent quota or a file-size limit, also in the words of torch and safetensors."""
    return getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS)

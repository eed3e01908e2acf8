"""Errors that a user can fix: a line on what happened, a line on what to do, and an exit code."""

import errno
from pathlib import Path

UNHARMED = "nothing was left half done"  # message of a stop about which nothing more is known
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CURES = {  # numbers of the operating system's errors, and what removes their cause
    **dict.fromkeys(_FULL, "free space"),
    **dict.fromkeys((errno.EACCES, errno.EPERM), "change its permissions"),
    **dict.fromkeys((errno.EEXIST, errno.ENOTDIR, errno.EISDIR), "move away what is in its place"),
}
_NO_MEMORY_WORDS = (
    "DefaultCPUAllocator",
    "MPS backend out of memory",
    "CUDA error: out of memory",
    "STATUS_ALLOC_FAILED",  # of cuBLAS and cuDNN
)
_FULL_WORDS = ("PytorchStreamWriter failed writing", "unexpected pos", *(f"os error {code}" for code in _FULL))


class RapmError(Exception):
    """Base of all errors with a remedy; any other exception that reaches the user is a bug in rapm.

    Args:
        message: What happened, naming the file or value.
        remedy: What to type or change; empty only if nothing can be done.
    """

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy


class ConfigError(RapmError):
    """A setting is unknown, of the wrong type, out of range, or in conflict with another."""

    exit_code = 2


class InputError(RapmError):
    """A file was refused: missing, unreadable, corrupt, or not what it should be."""

    exit_code = 3


class DamagedError(InputError):
    """A folder written by `core.storage.commit` differs from what was written.

    Args:
        place: The folder.
        damage: Name of the file, and what is wrong with it.
    """

    def __init__(self, place: Path, damage: str) -> None:
        super().__init__(f"{place} is damaged: {damage}", "restore it from a copy, or remove it")
        self.place, self.damage = place, damage


class WeightsError(RapmError):
    """Weights are missing and cannot be downloaded."""

    exit_code = 4


class DiskError(RapmError):
    """The disk is full or cannot be written."""

    exit_code = 5
    is_full = False
    cure = ""  # what removes the cause, where that is known
    place: Path | None = None  # what cannot be written, where that is known

    @classmethod
    def of(cls, error: Exception, path: object, what: str = "written") -> "DiskError":
        """Return the error of a path that cannot be written, in the words of the operating system.

        Args:
            error: Exception of the operating system, torch or safetensors.
            path: The path.
            what: Participle of what failed.
        """
        reason = getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
        is_full = is_disk_full(error)
        cure = _CURES[errno.ENOSPC] if is_full else _CURES.get(getattr(error, "errno", 0), "")
        remedy = " or ".join(filter(None, (cure and f"{cure},", f"name a place that can be {what}")))
        made = cls(f"{path} cannot be {what}: {reason}", remedy)
        made.is_full, made.cure, made.place = is_full, cure, Path(str(path)).absolute()
        return made

    @classmethod
    def full(cls, place: object, what: str, needed: int, free: int) -> "DiskError":
        """Return the error of a disk with too little space.

        Args:
            place: Path that would be written.
            what: What needs the space, for the message.
            needed: Bytes needed.
            free: Bytes free.
        """
        cure = _CURES[errno.ENOSPC]
        made = cls(f"{what} needs {_size(needed)}, {_size(free)} are free at {place}", cure)
        made.is_full, made.cure = True, cure
        return made

    def then(self, step: str) -> str:
        """Return the remedy of work that continues: remove the cause, and take a step such as the same command."""
        return f"{self.cure}, and {step}" if self.cure else step


class OutOfMemoryError(RapmError):
    """The device is out of memory."""

    exit_code = 6


class DivergedError(RapmError):
    """Training met values that are not finite, and could not continue."""

    exit_code = 7


class LockedError(RapmError):
    """Another process holds the run."""

    exit_code = 8


class Stopped(BaseException):  # like KeyboardInterrupt, so that no `except Exception` catches it
    """A signal asked the process to stop.

    Args:
        number: Number of the signal.
        message: What is saved.
        remedy: How the user can resume.
    """

    def __init__(self, number: int, message: str = UNHARMED, remedy: str = "") -> None:
        super().__init__(message)
        self.number, self.message, self.remedy = number, message, remedy

    @property
    def exit_code(self) -> int:
        """128 plus the signal's number, as in a shell: 129, 130 or 143."""
        return 128 + self.number


class PeerEnded(Stopped):
    """Another process of the job has ended, so that this one cannot continue.

    Args:
        message: Which process, and why; empty if that process reports it.
        code: Exit code of that process.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(0, message)
        self._code = code

    @property
    def exit_code(self) -> int:
        """Exit code of the process that has ended."""
        return self._code


class VerificationError(RapmError):
    """A file that was read back differs from what was written."""

    exit_code = 9


def as_told(error: Exception) -> RapmError:
    """Convert any exception to a `RapmError` for the user; an unexpected one becomes a bug report."""
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
    """Return True if memory of a device or of the machine ran out, also by the text of torch's errors."""
    is_from_torch = type(error).__name__ == "OutOfMemoryError" or any(words in str(error) for words in _NO_MEMORY_WORDS)
    return is_from_torch or isinstance(error, MemoryError)


def require_shortage(error: RuntimeError) -> RuntimeError:
    """Raise the error again unless memory ran out.

    Returns:
        The error without its frames, whose tensors would fill the memory that another try needs.
    """
    if not is_out_of_memory(error):
        raise error
    return error.with_traceback(None)


def _size(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.0f} kB"


def is_disk_full(error: BaseException) -> bool:
    """Return True for a full disk, quota or file-size limit, also by the text of torch's and safetensors' errors."""
    return getattr(error, "errno", None) in _FULL or any(words in str(error) for words in _FULL_WORDS)

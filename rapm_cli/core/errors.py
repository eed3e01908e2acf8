"""Errors that a user can mend: one line of what happened, one of what to do, and an exit code."""


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


class WeightsError(RapmError):
    """Weights are missing and cannot be fetched."""

    exit_code = 4


class DiskError(RapmError):
    """The disk is full or cannot be written."""

    exit_code = 5

    @classmethod
    def of(cls, error: Exception, path: object) -> "DiskError":
        """The error that stopped the writing of `path`, in the words of the system."""
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return cls(f"{path} cannot be written: {reason}", "free space, or name a place that can be written")


class OutOfMemoryError(RapmError):
    """The device is out of memory."""

    exit_code = 6


class DivergedError(RapmError):
    """Training met a value that is not finite."""

    exit_code = 7


class LockedError(RapmError):
    """Another process holds the run."""

    exit_code = 8


class VerificationError(RapmError):
    """A written file, read back, is not what was written."""

    exit_code = 9

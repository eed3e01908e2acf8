"""Interface through which a job reports progress; the command line implements it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Bar(Protocol):
    """A progress bar."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """Advance the bar.

        Args:
            count: Number of units done since the last call.
            note: Text at the end of the bar; replaces the one before.
        """


class _NoBar:
    def advance(self, count: int = 1, note: str = "") -> None:
        pass


NO_BAR: Bar = _NoBar()  # for work too short to show


class Reporter(Protocol):
    """Receiver of a job's messages."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str, device: "torch.device", done: int = 0) -> Iterator[Bar]:
        """Show a progress bar for as long as the context lasts.

        Args:
            title: What is being done.
            total: Number of units in all.
            unit: Name of a unit, singular.
            device: Device whose used memory is shown.
            done: Number of units done before.
        """

    def say(self, line: str) -> None:
        """Show a line of information."""

    def warn(self, line: str) -> None:
        """Show a line that the user should not miss."""

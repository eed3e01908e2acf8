"""Interface through which a job reports progress; the command line implements it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

ROUNDING = 1e-6  # of shares that sum up to a whole part
HOUR = 3600
DAYS = 4  # from which a duration is in days


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


class Pace:
    """Pace of a work that is done unit by unit: how long the present unit still takes, for a user who wants to stop."""

    def __init__(self) -> None:
        self._begun, self._parts, self._usual = time.monotonic(), 1.0, 0.0
        self.done = 0.0  # parts of the present unit

    def begin(self, parts: int = 1) -> None:
        """Begin a unit.

        Args:
            parts: Number of equal parts of the unit, each of which ends with `advance`.
        """
        self._begun, self._parts, self.done = time.monotonic(), parts, 0.0

    def advance(self, share: float = 1.0) -> str:
        """End a part, or a share of one; return the number of parts done, of all."""
        self.done += share
        return f"{int(self.done + ROUNDING)}/{round(self._parts)}"

    def lose(self, kept: float) -> None:
        """Add the parts that were done in vain and have to be done again, all but the first `kept` of those done."""
        self._parts += self.done - kept

    def end(self) -> None:
        """End the unit, whose time is the guess for the next one."""
        self._usual = time.monotonic() - self._begun

    def seconds_left(self) -> float | None:
        """Return the seconds that the present unit still takes; None while nothing is known."""
        spent = time.monotonic() - self._begun
        if self.done:
            return spent / self.done * (self._parts - self.done)
        return max(0.0, self._usual - spent) if self._usual else None


def time_in_words(seconds: float) -> str:
    """Return a duration in seconds, minutes, hours or days, whichever reads best."""
    if seconds < 2 * 60:
        return f"{seconds:.0f} s"
    if seconds < 2 * HOUR:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / HOUR:.1f} h" if seconds < DAYS * 24 * HOUR else f"{seconds / 24 / HOUR:,.0f} days"

"""How a job tells what it is doing; the command line draws it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch


class Bar(Protocol):
    """One bar of progress."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` replaces the text at the end of the bar."""


class Reporter(Protocol):
    """Somebody who watches a job."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str, device: "torch.device", done: int = 0) -> Iterator[Bar]:
        """A bar of `total` units, `done` of them before, for as long as the context lasts; with the device's memory."""

    def say(self, line: str) -> None:
        """One line of talk."""

    def warn(self, line: str) -> None:
        """One line that the user should not miss."""

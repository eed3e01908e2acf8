"""How a job tells what it is doing; the command line draws it."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Bar(Protocol):
    """One bar of progress."""

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` replaces the text at the end of the bar."""


class Watcher(Protocol):
    """Somebody who watches a job."""

    @contextmanager
    def bar(self, title: str, total: int, unit: str, device: torch.device) -> Iterator[Bar]:
        """A bar of `total` units for as long as the context lasts, with the device's memory beside it."""

    def say(self, line: str) -> None:
        """One line of talk."""

    def warn(self, line: str) -> None:
        """One line that the user should not miss."""


def batches(items: range | list[T], size: int) -> Iterable[list[T]]:
    """Consecutive parts of at most `size`."""
    for start in range(0, len(items), size):
        yield list(items[start : start + size])  # type: ignore[arg-type]

"""Registries: named choices, each added by one decorator."""

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from rapm_cli.core.common.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Map names to entries of one kind.

    Args:
        kind: Noun for an entry in messages, such as "base".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Return a decorator that adds an entry.

        Raises:
            ValueError: The name exists already.
        """

        def register(entry: T) -> T:
            if name in self._things:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._things[name] = entry
            return entry

        return register

    def names(self) -> list[str]:
        """List all names in the order in which they were added."""
        return list(self._things)

    def __getitem__(self, name: str) -> T:
        """Return the entry of that name.

        Raises:
            ConfigError: The name is unknown.
        """
        if name not in self._things:
            close = difflib.get_close_matches(name, self._things, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"no {self.kind} is called {name!r}", f"{hint}there are: {', '.join(self._things)}")
        return self._things[name]

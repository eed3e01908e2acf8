"""Named choices, each added once, in one place."""

import difflib
from collections.abc import Callable
from typing import Generic, TypeVar

from rapm_cli.core.common.errors import ConfigError

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind.

    Args:
        kind: What the things are called in messages, such as "base".
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._things: dict[str, T] = {}

    def add(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a thing.

        Raises:
            ValueError: The name is taken.
        """

        def register(thing: T) -> T:
            if name in self._things:
                raise ValueError(f"two {self.kind}s are called {name!r}")
            self._things[name] = thing
            return thing

        return register

    def names(self) -> list[str]:
        """All names, in the order they were added."""
        return list(self._things)

    def __getitem__(self, name: str) -> T:
        """The thing of that name.

        Raises:
            ConfigError: There is none.
        """
        if name not in self._things:
            close = difflib.get_close_matches(name, self._things, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            raise ConfigError(f"no {self.kind} is called {name!r}", f"{hint}there are: {', '.join(self._things)}")
        return self._things[name]

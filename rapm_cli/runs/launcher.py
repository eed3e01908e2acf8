"""The environment that torchrun and accelerate give to each process that they start, read without torch."""

import os

from rapm_cli.core.common.errors import ConfigError


def world_size() -> int:
    """Return the number of processes that were started together.

    Raises:
        ConfigError: WORLD_SIZE is not a number.
    """
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE {os.environ['WORLD_SIZE']!r} is not a number", "start with torchrun") from error


def speaker() -> str:
    """Return the prefix of this process's warnings; empty for the first process and for a single one."""
    return f"process {os.environ['RANK']}: " if is_follower() else ""


def is_follower() -> bool:
    """Return True in every process but the first, which alone reports to the user."""
    return world_size() > 1 and os.environ.get("RANK", "0") != "0"

"""What torchrun and accelerate tell a process that they start, read without torch."""

import os

from rapm_cli.core.common.errors import ConfigError


def world_size() -> int:
    """How many processes were started together.

    Raises:
        ConfigError: The environment does not say it as torchrun does.
    """
    try:
        return max(1, int(os.environ.get("WORLD_SIZE", "1")))
    except ValueError as error:
        raise ConfigError(f"WORLD_SIZE {os.environ['WORLD_SIZE']!r} is no number", "start with torchrun") from error


def speaker() -> str:
    """What a process other than the first begins its warnings with; empty for the first, and for one alone."""
    return f"process {os.environ['RANK']}: " if is_follower() else ""


def is_follower() -> bool:
    """True in all of them but the first, which alone talks."""
    return world_size() > 1 and os.environ.get("RANK", "0") != "0"

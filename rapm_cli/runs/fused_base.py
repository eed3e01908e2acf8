"""Bases with a LoRA in their weights, as `rapm export --fuse` writes them; they need no --lora."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases import BASES, Base, find_base
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method.samplers import Sampler
from rapm_cli.formats.header import read_header
from rapm_cli.formats.lora import recipe_sampler
from rapm_cli.formats.recipe import RECIPE_FILE, RECIPE_KEY, parse_recipe


@dataclass(frozen=True)
class FusedBase:
    """A base with a LoRA in its weights; its attributes are those of `ResolvedLora`.

    Args:
        base: The base.
        recipe: Recipe of the LoRA.
    """

    base: Base
    recipe: dict[str, Any]

    @property
    def origin(self) -> str:
        """Path of the base, for messages."""
        return self.base.source

    @property
    def reason(self) -> str:
        """Why this base was chosen, for messages."""
        return "which has its LoRA in it"

    @property
    def steps(self) -> int:
        """Number of steps that the LoRA was distilled for."""
        steps: int = self.recipe["sampler"]["steps"]
        return steps

    @property
    def sampler(self) -> Sampler:
        """Sampler that the LoRA was distilled for."""
        return recipe_sampler(self.recipe)

    @property
    def digest(self) -> str:
        """Empty, because there is no LoRA file."""
        return ""

    @property
    def teacher(self) -> dict[str, Any]:
        """Refuse to compare with the teacher, whose weights are lost.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"--compare wants the teacher, and {self.origin} has a LoRA in its weights", "leave --compare out"
        )

    @property
    def warning(self) -> str:
        """Return an empty warning: the recipe of a fused base names its sampler."""
        return ""


def fused_base(base: Base) -> FusedBase | None:
    """Return the base as a `FusedBase` if its folder or checkpoint has a LoRA's recipe, else None.

    Raises:
        InputError: The recipe is malformed.
    """
    if base.source in BASES.names():
        return None
    try:
        recipe = parse_recipe({RECIPE_KEY: _recipe_text(Path(base.source))})
    except ValueError as error:
        raise InputError(f"{base.source} has a recipe that cannot be read: {error}", "export it again") from error
    return FusedBase(base, recipe) if "steps" in recipe.get("sampler", {}) else None


def unfused_base(name: str, reporter: Reporter) -> Base:
    """Find a base that can be distilled.

    Args:
        name: Name, folder, checkpoint or repository, as `--base` takes it.
        reporter: Receives messages of the hub.

    Raises:
        InputError: The base has a LoRA in its weights.
    """
    base = find_base(name, reporter)
    if fused_base(base):
        raise InputError(f"{base.source} has a LoRA in its weights", "give the base that it was merged into")
    return base


def _recipe_text(path: Path) -> str:
    """Return the recipe's JSON in a local folder or checkpoint; an empty table for a repository of the hub."""
    if path.is_file():
        return read_header(path).metadata.get(RECIPE_KEY, "{}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (path / RECIPE_FILE).read_text(encoding="utf-8", errors="replace")
    return "{}"

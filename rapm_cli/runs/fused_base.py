"""A base with a LoRA in its weights, as `rapm export --fuse` writes it, which draws by itself in a few steps."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rapm_cli.bases import BASES, Base, Weights, find_base
from rapm_cli.core.common.errors import ConfigError, InputError
from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.method import sampler_of
from rapm_cli.core.method.samplers import Sampler
from rapm_cli.formats.header import read_header
from rapm_cli.formats.recipe import RECIPE_FILE, RECIPE_KEY, parse_recipe


@dataclass(frozen=True)
class MergedBase:
    """A base that is a student.

    Args:
        base: The base.
        recipe: Of the LoRA in it.
    """

    base: Base
    recipe: dict[str, Any]

    @property
    def origin(self) -> str:
        """Where it is, for messages."""
        return self.base.source

    @property
    def reason(self) -> str:
        """How it was chosen."""
        return "which has its LoRA in it"

    @property
    def steps(self) -> int:
        """That it was distilled for."""
        steps: int = self.recipe["sampler"]["steps"]
        return steps

    @property
    def sampler(self) -> Sampler:
        """How it is sampled."""
        return sampler_of(self.recipe.get("training", {}))

    @property
    def digest(self) -> str:
        """Of a LoRA's file: there is none."""
        return ""

    @property
    def teacher(self) -> dict[str, Any]:
        """None is left.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"--compare wants the teacher, and {self.origin} has a LoRA in its weights", "leave --compare out"
        )

    def doubt(self, weights: Weights) -> str:
        """Nothing speaks against drawing as it was made to."""
        return ""


def merged_base(base: Base) -> MergedBase | None:
    """The base as a student, where its folder or checkpoint says that a LoRA is in it; else None.

    Raises:
        InputError: What it says is no recipe.
    """
    if base.source in BASES.names():
        return None
    try:
        recipe = parse_recipe({RECIPE_KEY: _text_of(Path(base.source))})
    except ValueError as error:
        raise InputError(f"{base.source} has a recipe that is none: {error}", "export it again") from error
    return MergedBase(base, recipe) if "steps" in recipe.get("sampler", {}) else None


def undistilled_base(name: str, reporter: Reporter) -> Base:
    """The base of that name, which is to have a student.

    Raises:
        InputError: It is a student itself.
    """
    base = find_base(name, reporter)
    if merged_base(base):
        raise InputError(f"{base.source} has a LoRA in its weights", "give the base that it was merged into")
    return base


def _text_of(path: Path) -> str:
    """What a model of this machine says of a LoRA in it; an empty table for one of the hub."""
    if path.is_file():
        return read_header(path).metadata.get(RECIPE_KEY, "{}")
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return (path / RECIPE_FILE).read_text(encoding="utf-8", errors="replace")
    return "{}"

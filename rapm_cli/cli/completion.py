"""Completions beyond the choices that options declare: names of bases, runs, studies and metrics.

Typer calls these functions with the half-typed word. If they return nothing, the shell offers files.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from rapm_cli.bases.places import runs_dir

STUDIES = Path(__file__).parent.parent / "study" / "studies"
BASES = ("demo", "sdxl", "sd15")
DEVICES = ("auto", "cpu", "cuda", "mps")
FORMATS = ("diffusers", "kohya")
TRACKERS = ("tensorboard", "wandb", "trackio")


def words(*choices: str) -> Callable[[str], list[str]]:
    """Return a completion of these words, for an option that takes other values too."""
    return lambda incomplete: _starting(choices, incomplete)


def list_of(*choices: str) -> Callable[[str], list[str]]:
    """Return a completion of words with commas between them."""

    def complete(incomplete: str) -> list[str]:
        typed, comma, last = incomplete.rpartition(",")
        left = [choice for choice in choices if choice not in typed.split(",")]
        return [typed + comma + choice for choice in _starting(left, last)]

    return complete


def runs(incomplete: str) -> list[str]:
    """Return the names of the runs in the usual folder."""
    folder = runs_dir()
    return _starting(sorted(path.name for path in folder.iterdir()) if folder.is_dir() else (), incomplete)


def things(incomplete: str) -> list[str]:
    """Return the names that `rapm inspect` takes."""
    return _starting(("cache", "device"), incomplete) + runs(incomplete)


def studies(incomplete: str) -> list[str]:
    """Return the names of the studies that ship with rapm."""
    return _starting(sorted(path.stem for path in STUDIES.glob("*.toml")), incomplete)


def _starting(choices: Iterable[str], incomplete: str) -> list[str]:
    return [choice for choice in choices if choice.startswith(incomplete)]

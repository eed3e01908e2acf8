"""Teachers: what is loaded, and how. Modules are imported when they are asked for: places of files need no torch."""

from rapm_cli.bases.base import BASES, Base, Defaults, Exam
from rapm_cli.bases.demo import base as _demo  # noqa: F401  registers itself
from rapm_cli.bases.find import find_base
from rapm_cli.bases.loading import LoadedBase
from rapm_cli.bases.weights import Weights

__all__ = ["BASES", "Base", "Defaults", "Exam", "LoadedBase", "Weights", "find_base"]

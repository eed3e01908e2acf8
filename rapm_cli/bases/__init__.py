"""Base models (the teachers) and how they are loaded. Modules are imported on demand: paths of files need no torch."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapm_cli.bases.base import BASES, Base, Defaults, LabelledPrompts
    from rapm_cli.bases.find import find_base
    from rapm_cli.bases.loading import LoadedBase
    from rapm_cli.bases.weights import Weights

__all__ = ["BASES", "Base", "Defaults", "LabelledPrompts", "LoadedBase", "Weights", "find_base"]
_HOMES = dict.fromkeys(__all__, "base") | {"LoadedBase": "loading", "Weights": "weights", "find_base": "find"}


def __getattr__(name: str) -> Any:
    """Return a public name, after all bases with a name are registered."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in ("demo.base", "published"):
        import_module(f"{__name__}.{module}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)

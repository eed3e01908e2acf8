"""The methods of distillation: RAPM, and its peers in the same trainer.

Modules are imported when a name is asked for, because the settings (`config`) are read without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, get_args

from rapm_cli.core.method.config import MethodName

if TYPE_CHECKING:
    from rapm_cli.core.method.base import METHODS, Method, sampler_of

__all__ = ["METHODS", "Method", "sampler_of"]


def __getattr__(name: str) -> Any:
    """Return a public name, once every method is registered."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for method in get_args(MethodName):  # each is a module of its name
        import_module(f"{__name__}.{method}")
    return getattr(import_module(f"{__name__}.base"), name)

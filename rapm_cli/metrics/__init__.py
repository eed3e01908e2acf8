"""Metrics: features, answers and images to numbers. Each module adds its metrics to `METRICS`.

Completion and help read `MODULES` without torch. The modules are imported when `METRICS` is asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rapm_cli.metrics.metric import METRICS, bootstrap_of

MODULES = {  # metrics of each module
    "labels": ("attributes", "pictures"),
    "two_sample": ("told-apart", "told-true"),
    "frequencies": ("edges", "coarse", "middle", "fine"),
    "diversity": ("diversity",),
    "patches": ("patches",),
    "teacher_difference": ("fidelity", "latents", "position"),
    "frechet": ("fd-demo", "fid", "fd-dinov2"),
    "kernel": ("kd-demo", "kid"),
    "clip_score": ("clip",),
    "cmmd": ("cmmd",),
    "neighbours": ("precision", "recall", "density", "coverage"),
}
NAMES = tuple(name for names in MODULES.values() for name in names)  # in the order of the table's columns

__all__ = ["METRICS", "MODULES", "NAMES", "bootstrap_of"]


def __getattr__(name: str) -> Any:
    """Return a public name, once every metric is registered."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    for module in MODULES:
        import_module(f"{__name__}.{module}")
    return getattr(import_module(f"{__name__}.metric"), name)

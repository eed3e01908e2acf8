"""Metrics: features, answers and images to numbers. Each module below adds its metrics to `METRICS`."""

from importlib import import_module

from rapm_cli.metrics.metric import METRICS

MODULES = (  # in the order of the table's columns
    "labels",
    "frechet",
    "kernel",
    "clip_score",
    "cmmd",
    "neighbours",
    "teacher_difference",
)
for _name in MODULES:
    import_module(f"{__name__}.{_name}")

__all__ = ["METRICS"]

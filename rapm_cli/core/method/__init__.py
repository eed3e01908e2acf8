"""The methods of distillation: RAPM, and its peers in the same trainer."""

from rapm_cli.core.method import dmd2, kd, lcm, pcm, rapm
from rapm_cli.core.method.base import METHODS, Method, sampler_of

__all__ = ["METHODS", "Method", "dmd2", "kd", "lcm", "pcm", "rapm", "sampler_of"]

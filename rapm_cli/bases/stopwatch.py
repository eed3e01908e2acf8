"""How long work takes on a device, and how fast the device is at best."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rapm_cli.core.common.randomness import generator_for

SIDES = {"cuda": 8192}  # of the square matrices whose product is timed
SIDE = 1024
ENOUGH_SECONDS = 8.0  # after which work is not measured again


@dataclass(frozen=True)
class Timed:
    """What a piece of work took.

    Args:
        seconds: Median of several times, or of few where each is long, once the device is warm.
        peak_bytes: The most that the device held meanwhile; None where nobody counts.
    """

    seconds: float
    peak_bytes: int | None


def timed(work: Callable[[], object], device: torch.device, repeats: int = 3, warmups: int = 1) -> Timed:
    """Do some work `warmups` times, then `repeats` times against the clock, or fewer where each takes long."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    for _ in range(warmups):
        work()
    seconds: list[float] = []
    while len(seconds) < repeats and sum(seconds) < ENOUGH_SECONDS:
        wait(device)
        clock = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - clock)
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Timed(statistics.median(seconds), peak)


def wait(device: torch.device) -> None:
    """Until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of two large square matrices."""
    side = SIDES.get(device.type, SIDE)
    noise = torch.randn(2, side, side, generator=generator_for(0, "matmul"))  # equal numbers would need less power
    a, b = noise.to(dtype).to(device)
    return 2 * side**3 / timed(lambda: a @ b, device, repeats=7).seconds

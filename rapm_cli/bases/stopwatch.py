"""Time work on a device, and measure the device's peak rate."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from rapm_cli.core.common.randomness import generator_for

SIDES = {"cuda": 8192}  # rows of the square matrices that are multiplied
SIDE = 1024
ENOUGH_SECONDS = 8.0  # measured time after which no repeat is started


@dataclass(frozen=True)
class Timed:
    """Time and memory of a piece of work.

    Args:
        seconds: Median over the repeats, after the warm-ups.
        peak_bytes: Peak of allocated device memory; None if the device does not count it.
    """

    seconds: float
    peak_bytes: int | None


def timed(work: Callable[[], object], device: torch.device, repeats: int = 3, warmups: int = 1) -> Timed:
    """Time work: `warmups` unmeasured calls, then `repeats` measured ones, or fewer if they are slow."""
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
    """Wait until the device has finished all queued work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measure floating-point operations per second in a product of two large square matrices."""
    side = SIDES.get(device.type, SIDE)
    noise = torch.randn(
        2, side, side, generator=generator_for(0, "matmul")
    )  # constant matrices need less power and run faster
    a, b = noise.to(dtype).to(device)
    return 2 * side**3 / timed(lambda: a @ b, device, repeats=7).seconds

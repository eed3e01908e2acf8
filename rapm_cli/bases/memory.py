"""Read how much memory a job uses and how much is free, without synchronising the device."""

import os
from dataclasses import dataclass

import psutil
import torch

from rapm_cli.bases.device import MIB, peak_memory_mib
from rapm_cli.bases.plans import GIB

CONTEXT = 512 * MIB  # approximate memory of a CUDA context per process, which no allocator counts
NOTABLE = GIB // 2  # a smaller share of other processes may be an error of `CONTEXT`


@dataclass(frozen=True)
class MemoryReading:
    """Memory in bytes.

    Args:
        kind: "GPU", or "RAM" without one.
        allocated: Used by this process now.
        peak: Peak use of this process; None if the device does not count it.
        free: Free on the device.
        total: Size of the device's memory.
        others: Estimated use of other processes; 0 for the CPU.
    """

    kind: str
    allocated: int
    peak: int | None
    free: int
    total: int
    others: int = 0

    def words(self, *, is_short: bool = False) -> str:
        """Describe the reading; at most 20 letters if short, else 54. The first number's unit holds for all."""
        if is_short:
            return f"{_gib(self.allocated)} GiB, {_gib(self.free)} free"
        peak = "" if self.peak is None else f", peak {_gib(self.peak)}"
        others = f", others {_gib(self.others)}" if self.others >= NOTABLE else ""
        left = f"free {_gib(self.free)} of {self.total / GIB:.0f}"
        return f"{self.kind} {_gib(self.allocated)} GiB{peak}, {left}{others}"


def read_memory(device: torch.device) -> MemoryReading:
    """Read the memory of the device now, or of the machine for the CPU. Does not synchronise the device."""
    return {"cuda": _of_cuda, "mps": _of_mps}.get(device.type, _of_cpu)(device)


def _of_cuda(device: torch.device) -> MemoryReading:
    free, total = torch.cuda.mem_get_info(device)
    others = max(0, total - free - torch.cuda.memory_reserved(device) - CONTEXT)
    allocated, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return MemoryReading("GPU", allocated, peak, free, total, others)


def _of_mps(device: torch.device) -> MemoryReading:
    """Read Apple's GPU, which shares the machine's memory; the recommended maximum counts as its size."""
    allocated, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    free = min(max(0, total - allocated), psutil.virtual_memory().available)
    return MemoryReading("GPU", allocated, None, free, total)


def _of_cpu(device: torch.device) -> MemoryReading:
    machine, resident = psutil.virtual_memory(), psutil.Process(os.getpid()).memory_info().rss
    peak = max(resident, int(peak_memory_mib(device) * MIB))
    return MemoryReading("RAM", resident, peak, machine.available, machine.total)


def _gib(count: int) -> str:
    """Format bytes as GiB with three digits."""
    size = count / GIB
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f}"

"""How much memory a job takes and how much is left, read without making the device wait."""

import os
from dataclasses import dataclass

import psutil
import torch

from rapm_cli.bases.device import MIB, peak_memory_mib

GIB = 2**30
CONTEXT = 512 * MIB  # about what CUDA itself takes of a device for each process, which no allocator counts
NOTABLE = GIB // 2  # below it, what others seem to take may be an error of `CONTEXT`


@dataclass(frozen=True)
class MemoryReading:
    """Memory in bytes.

    Args:
        kind: "GPU", or "RAM" where there is none.
        allocated: By this process.
        peak: The most that was; None where nobody counts.
        free: For anybody.
        total: In all.
        others: Taken by other processes, as far as can be told; 0 for the CPU, where there always are some.
    """

    kind: str
    allocated: int
    peak: int | None
    free: int
    total: int
    others: int = 0

    def words(self, *, is_short: bool = False) -> str:
        """In words, of which the first number has the unit of all: at most 20 letters in short, 54 else."""
        if is_short:
            return f"{_gib(self.allocated)} GiB, {_gib(self.free)} free"
        peak = "" if self.peak is None else f", peak {_gib(self.peak)}"
        others = f", others {_gib(self.others)}" if self.others >= NOTABLE else ""
        left = f"free {_gib(self.free)} of {self.total / GIB:.0f}"
        return f"{self.kind} {_gib(self.allocated)} GiB{peak}, {left}{others}"


def read_memory(device: torch.device) -> MemoryReading:
    """Memory of the device now, of its machine where it is the CPU. Nothing here waits for the device's work."""
    return {"cuda": _of_cuda, "mps": _of_mps}.get(device.type, _of_cpu)(device)


def _of_cuda(device: torch.device) -> MemoryReading:
    free, total = torch.cuda.mem_get_info(device)
    others = max(0, total - free - torch.cuda.memory_reserved(device) - CONTEXT)
    allocated, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
    return MemoryReading("GPU", allocated, peak, free, total, others)


def _of_mps(device: torch.device) -> MemoryReading:
    """Of Apple's GPU, whose memory is the machine's; what it should take at most counts as all of it."""
    allocated, total = torch.mps.driver_allocated_memory(), torch.mps.recommended_max_memory()
    free = min(max(0, total - allocated), psutil.virtual_memory().available)
    return MemoryReading("GPU", allocated, None, free, total)


def _of_cpu(device: torch.device) -> MemoryReading:
    machine, resident = psutil.virtual_memory(), psutil.Process(os.getpid()).memory_info().rss
    peak = max(resident, int(peak_memory_mib(device) * MIB))
    return MemoryReading("RAM", resident, peak, machine.available, machine.total)


def _gib(count: int) -> str:
    """Three digits, as one reads them at a glance."""
    size = count / GIB
    return f"{size:.{2 if size < 10 else 1 if size < 100 else 0}f}"

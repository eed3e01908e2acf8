"""The processes that train together: what each takes of a batch, and how they agree.

Every random draw is made for the whole batch and each process takes its rows, so that R processes with B trajectories
each do what one does with R times B.
"""

from collections.abc import Sequence
from enum import IntEnum

import torch
from torch import Tensor, distributed


class Verdict(IntEnum):
    """What the first process has decided after an iteration."""

    GO = 0  # on with the next
    RESTORE = 1  # to the state that it tells, of so many iterations
    STOP = 2  # a signal of that number came


class Ranks:
    """This process among all of a distributed job; alone where there is none.

    Args:
        rank: Counts from 0; the first one writes and talks.
        world: How many there are.
        device: Where what they tell each other has to be.
    """

    def __init__(self, rank: int = 0, world: int = 1, device: torch.device | None = None) -> None:
        self.rank, self.world, self._device = rank, world, device or torch.device("cpu")
        self.has_shared = False  # anything, so that the others know what they are here for

    @property
    def is_first(self) -> bool:
        """True for the one process that writes and talks."""
        return self.rank == 0

    def rows(self, count: int) -> slice:
        """This process's rows of `count`, which `world` divides."""
        share = count // self.world
        return slice(self.rank * share, (self.rank + 1) * share)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over all processes, in one message."""
        if self.world == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        flat.div_(self.world)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def decide(self, verdict: Verdict = Verdict.GO, value: int = 0) -> tuple[Verdict, int]:
        """The first process's verdict with its number; what the others give is not asked for."""
        if self.world == 1:
            return verdict, value
        told = torch.tensor([int(verdict), value], device=self._device)
        distributed.broadcast(told, 0)
        first, second = told.tolist()
        return Verdict(first), second

    def share(self, data: bytes = b"") -> bytes:
        """The first process's bytes; what the others give is not asked for."""
        self.has_shared = True
        if self.world == 1:
            return data
        size = torch.tensor([len(data)], device=self._device)
        distributed.broadcast(size, 0)
        told = torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)].to(self._device)
        if not self.is_first:
            told = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        distributed.broadcast(told, 0)
        return told.cpu().numpy().tobytes()

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            distributed.barrier()


ALONE = Ranks()

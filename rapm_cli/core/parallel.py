"""The processes that train together: what each takes of a batch, and how they agree.

Every random draw is made for the whole batch and each process takes its rows, so that R processes with B trajectories
each do what one does with R times B.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, distributed


class Ranks:
    """This process among all of a distributed job; alone where there is none.

    Args:
        rank: Counts from 0; the first one writes.
        world: How many there are.
    """

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        self.rank, self.world = rank, world

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

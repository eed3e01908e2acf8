"""The processes that train together: what each takes of a batch, and how they agree.

Every random draw is made for the whole batch and each process takes its rows, so that R processes with B trajectories
each do what one does with R times B.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import IntEnum

import torch
from torch import Tensor, distributed

from rapm_cli.core.common.errors import PeerEnded, is_out_of_memory
from rapm_cli.core.training.job_store import JobStore

POLL_SECONDS = 0.1


class Verdict(IntEnum):
    """What the first process has decided after an iteration."""

    GO = 0  # on with the next
    RESTORE = 1  # to the state that it tells, of so many iterations
    STOP = 2  # a signal of that number came


class World:
    """This process among all of a distributed job; alone where there is none.

    Whatever is told raises `PeerEnded` where it cannot be, because another process is gone.

    Args:
        jobs: Of the job, which says how many there are and which this one is: the first, 0, writes and talks.
        device: Where what they tell each other has to be.
    """

    def __init__(self, jobs: JobStore | None = None, device: torch.device | None = None) -> None:
        self._jobs, self._device = jobs, device or torch.device("cpu")
        self.rank, self.size = (jobs.rank, jobs.size) if jobs else (0, 1)

    @property
    def is_first(self) -> bool:
        """True for the one process that writes and talks."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """This process's rows of `count`, which `size` divides."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype by their means over all processes, in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._together():
            distributed.all_reduce(flat)
        flat.div_(self.size)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_verdict(self, verdict: Verdict = Verdict.GO, value: int = 0) -> tuple[Verdict, int]:
        """The first process's verdict with its number; what the others give is not asked for.

        Raises:
            PeerEnded: All but the first stop, which tells it.
        """
        if self.size == 1:
            return verdict, value
        told = torch.tensor([int(verdict), value], device=self._device)
        with self._together():
            distributed.broadcast(told, 0)
            first, second = told.tolist()
        if first == Verdict.STOP and not self.is_first:
            raise PeerEnded("", 128 + second)
        return Verdict(first), second

    def broadcast(self, data: bytes = b"") -> bytes:
        """The first process's bytes; what the others give is not asked for."""
        if self.size == 1:
            return data
        size = torch.tensor([len(data)], device=self._device)
        with self._together():
            distributed.broadcast(size, 0)
        told = torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)].to(self._device)
        if not self.is_first:
            told = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        with self._together():
            distributed.broadcast(told, 0)
        return told.cpu().numpy().tobytes()

    def request_stop(self, number: int | None) -> int | None:
        """Tell all that a signal of that number asks to stop; the number of one that any process was sent."""
        return self._jobs.request_stop(number) if self._jobs else number

    def barrier(self, number: Callable[[], int | None]) -> int | None:
        """Wait until all are here; of the signal because of which all stop now, where the first one has heard of any.

        Args:
            number: Of the signal that this process was sent, asked for as long as it waits.

        Raises:
            PeerEnded: All but the first stop, which tells it.
        """
        if self.size == 1:
            return number()
        with self._together():
            meeting = distributed.barrier(async_op=True)
            while not meeting.is_completed():
                time.sleep(POLL_SECONDS)  # in which Python hears signals
                self.request_stop(number())
            meeting.wait()
        wish = self.request_stop(number())
        self.broadcast_verdict(*((Verdict.GO, 0) if wish is None else (Verdict.STOP, wish)))
        return wish if self.is_first else None

    @contextmanager
    def _together(self) -> Iterator[None]:
        """What fails inside fails because of another process."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            lost = PeerEnded(f"another process is gone without a word: {reason}", 1)
            raise (self._jobs and self._jobs.peer_exit()) or lost from error


ALONE = World()

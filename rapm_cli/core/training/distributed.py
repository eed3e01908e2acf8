"""The processes that train together: which rows of a batch each takes, and how they agree.

Random numbers are made for the whole batch, and each process takes its rows. So R processes with B trajectories each
do what one process does with R times B.
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
    """The decision of the first process after an iteration."""

    GO = 0  # continue with the next iteration
    RESTORE = 1  # load the state that it sends; the value is the number of its iterations
    STOP = 2  # a signal came; the value is its number


class World:
    """The processes of a distributed job, as one of them sees it; without a job, this process alone.

    Every method that communicates raises `PeerEnded` if another process is gone.

    Args:
        jobs: The job's store, which knows the number of processes and the rank of this one; None without a job.
        device: Device of the tensors that the processes exchange.
    """

    def __init__(self, jobs: JobStore | None = None, device: torch.device | None = None) -> None:
        self._jobs, self._device = jobs, device or torch.device("cpu")
        self.rank, self.size = (jobs.rank, jobs.size) if jobs else (0, 1)

    @property
    def is_first(self) -> bool:
        """True for the one process that writes files and reports."""
        return self.rank == 0

    def shard(self, count: int) -> slice:
        """Return this process's rows of `count` rows; `size` must divide `count`."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    @torch.no_grad()
    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by their means over all processes, in one all-reduce.

        Args:
            tensors: Tensors of one dtype and one device; their shapes are the same in all processes.
        """
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        with self._peers_needed():
            distributed.all_reduce(flat)
        flat.div_(self.size)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast_verdict(self, verdict: Verdict = Verdict.GO, value: int = 0) -> tuple[Verdict, int]:
        """Return the first process's verdict and its value; the arguments of the other processes are ignored.

        Raises:
            PeerEnded: The verdict is to stop, and this is not the first process.
        """
        if self.size == 1:
            return verdict, value
        told = torch.tensor([int(verdict), value], device=self._device)
        with self._peers_needed():
            distributed.broadcast(told, 0)
            first, second = told.tolist()
        if first == Verdict.STOP and not self.is_first:
            raise PeerEnded("", 128 + second)
        return Verdict(first), second

    def broadcast(self, data: bytes = b"") -> bytes:
        """Return the first process's bytes; the arguments of the other processes are ignored."""
        if self.size == 1:
            return data
        size = torch.tensor([len(data)], device=self._device)
        with self._peers_needed():
            distributed.broadcast(size, 0)
        told = torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)].to(self._device)
        if not self.is_first:
            told = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        with self._peers_needed():
            distributed.broadcast(told, 0)
        return told.cpu().numpy().tobytes()

    def request_stop(self, number: int | None) -> int | None:
        """Report a signal that asks to stop, if any; return the number of the first one that any process reported."""
        return self._jobs.request_stop(number) if self._jobs else number

    def barrier(self, number: Callable[[], int | None]) -> int | None:
        """Wait for all processes; return the number of the signal because of which all stop now, or None.

        Args:
            number: Function that returns the number of the signal that this process was sent, or None.

        Raises:
            PeerEnded: All stop, and this is not the first process.
        """
        if self.size == 1:
            return number()
        with self._peers_needed():
            meeting = distributed.barrier(async_op=True)
            while not meeting.is_completed():
                time.sleep(POLL_SECONDS)  # Python handles signals meanwhile
                self.request_stop(number())
            meeting.wait()
        requested = self.request_stop(number())
        self.broadcast_verdict(*((Verdict.GO, 0) if requested is None else (Verdict.STOP, requested)))
        return requested if self.is_first else None

    @contextmanager
    def _peers_needed(self) -> Iterator[None]:
        """Inside, an error other than a lack of memory means that another process is gone."""
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            reason = str(error).splitlines()[0].split("] ", 1)[-1].split(". ")[0]
            lost = PeerEnded(f"another process is gone without a word: {reason}", 1)
            raise (self._jobs and self._jobs.peer_exit()) or lost from error


ALONE = World()

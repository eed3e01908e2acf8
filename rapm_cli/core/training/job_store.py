"""Messages between the processes of a job outside of their collectives: requests to stop, and exit codes."""

import contextlib
import json
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from rapm_cli.core.common.errors import PeerEnded

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

POLL_SECONDS = 0.05
ENDING, WISH, LEFT = "rapm/ending", "rapm/wish", "rapm/left"


class JobStore:
    """A store that every process can read at any time, whatever collective it or another is waiting in.

    Once the process that holds the store is gone, messages are neither sent nor received.

    Args:
        store: Store that all processes share.
        rank: Rank of this process.
        size: Number of processes.
    """

    def __init__(self, store: "Store", rank: int, size: int) -> None:
        self._held = store  # in the first process it may be the server of the others
        # A connection of its own, so that nothing here waits for another thread's answer.
        self._store = store.clone()  # type: ignore[attr-defined]
        self.rank, self.size = rank, size
        self._is_there, self._has_left = True, False

    def report_exit(self, code: int, why: str) -> None:
        """Report that this process has ended; only the first report of all processes counts.

        Args:
            code: Exit code, in [0, 255].
            why: The reason, in one line.
        """
        with self._while_there():
            self._store.compare_set(ENDING, "", json.dumps([self.rank, code, why]))

    def peer_exit(self) -> PeerEnded | None:
        """Return how another process has ended; None if none has, or if this one was the first."""
        with self._while_there():
            if self._is_there and self._store.check([ENDING]):
                rank, code, why = json.loads(self._store.get(ENDING))
                return None if rank == self.rank else PeerEnded(f"process {rank} has ended: {why}", code)
        return None

    def request_stop(self, number: int | None = None) -> int | None:
        """Request a stop because of a signal, if any; return the number of the first signal requested, or None."""
        with self._while_there():
            if number is not None:
                return int(self._store.compare_set(WISH, "", str(number)))
            if self._store.check([WISH]):
                return int(self._store.get(WISH))
        return number

    def detach(self) -> None:
        """Report that this process needs the others no more."""
        if not self._has_left:  # or the store may be gone already
            self._has_left = True
            with self._while_there():
                self._store.set(f"{LEFT}/{self.rank}", "")

    def all_detached(self, ranks: Iterable[int], seconds: float) -> bool:
        """Wait for these processes to detach, for some seconds at most; return True if they have."""
        keys, end = [f"{LEFT}/{rank}" for rank in ranks], time.monotonic() + seconds
        with self._while_there():
            while not self._store.check(keys):
                if time.monotonic() > end:
                    return False
                time.sleep(POLL_SECONDS)
        return self._is_there

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """Ignore errors of the store, and note that the process that holds it is gone."""
        try:
            yield
        except RuntimeError:
            self._is_there = False

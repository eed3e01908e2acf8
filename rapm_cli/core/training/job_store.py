"""What the processes that train together tell each other beside their collectives: wishes to stop, and how it ended."""

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
    """A few words that every process can read at any time, whatever collective it or another is waiting in.

    Args:
        store: That all of them share.
        rank: Of this process.
        size: How many there are.
    """

    def __init__(self, store: "Store", rank: int, size: int) -> None:
        self._held = store  # in the first process it may be what serves the others
        # A connection of its own, so that nothing here waits for another thread's answer.
        self._store = store.clone()  # type: ignore[attr-defined]
        self.rank, self.size = rank, size
        self._is_there, self._has_left = True, False

    def report_exit(self, code: int, why: str) -> None:
        """Say that this process has ended, with an exit code; the first that says so is heard."""
        with self._while_there():
            self._store.compare_set(ENDING, "", json.dumps([self.rank, code, why]))

    def peer_exit(self) -> PeerEnded | None:
        """How another process has ended, where one was the first to say so."""
        with self._while_there():
            if self._is_there and self._store.check([ENDING]):
                rank, code, why = json.loads(self._store.get(ENDING))
                return None if rank == self.rank else PeerEnded(f"process {rank} has ended: {why}", code)
        return None

    def request_stop(self, number: int | None = None) -> int | None:
        """Ask all to stop because of a signal; the number of the first that any was asked by, None for none."""
        with self._while_there():
            if number is not None:
                return int(self._store.compare_set(WISH, "", str(number)))
            if self._store.check([WISH]):
                return int(self._store.get(WISH))
        return number

    def detach(self) -> None:
        """Say that this process needs no other any more."""
        if not self._has_left:  # or the store may be gone already
            self._has_left = True
            with self._while_there():
                self._store.set(f"{LEFT}/{self.rank}", "")

    def all_detached(self, ranks: Iterable[int], seconds: float) -> bool:
        """Wait until these processes have left, at most so long; True where they have."""
        keys, end = [f"{LEFT}/{rank}" for rank in ranks], time.monotonic() + seconds
        with self._while_there():
            while not self._store.check(keys):
                if time.monotonic() > end:
                    return False
                time.sleep(POLL_SECONDS)
        return self._is_there

    @contextlib.contextmanager
    def _while_there(self) -> Iterator[None]:
        """Nothing is told or heard once the process that holds the store is gone."""
        try:
            yield
        except RuntimeError:
            self._is_there = False

"""What looks at pictures, and pictures to features in batches that are read ahead."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from rapm_cli.core.common.progress import Reporter
from rapm_cli.core.common.registry import Registry
from rapm_cli.extractors.preparation import Picture, Preparation

BATCH = 32
THREADS = 4  # that read and prepare; decoding and resizing let others run meanwhile


@dataclass(frozen=True)
class Extractor:
    """A network from pictures to features.

    Args:
        identity: What tells its features from others': network, weights, and how it prepares a picture.
        width: D, of the features.
        prepare: A picture to the (3, S, S) that the network takes.
        network: (B, 3, S, S) float32 on the device to (B, D).
        device: Where it computes.
    """

    identity: str
    width: int
    prepare: Callable[[Picture], NDArray[np.float32]]
    network: Callable[[Tensor], Tensor]
    device: torch.device

    def after(self, preparation: Preparation) -> "Extractor":
        """The same, of pictures that are prepared so first."""
        if preparation.side_px is None:
            return self
        prepare = self.prepare
        identity = f"{self.identity}, after {preparation.spec}"
        return replace(self, identity=identity, prepare=lambda picture: prepare(preparation(picture)))

    @torch.no_grad()
    def features(self, pictures: Iterable[Callable[[], Picture]], batch: int = BATCH) -> Iterator[Tensor]:
        """(B, D) float32 on the CPU for each B pictures, in order; while one batch is looked at, the next are read.

        Args:
            pictures: Each read when it is called, in another thread.
            batch: B, of all but the last.
        """
        for prepared in _read_ahead(pictures, self.prepare, batch):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 in convolutions too
                seen = self.network(torch.from_numpy(prepared).to(self.device)).float().cpu()
            yield seen


@dataclass(frozen=True)
class Opening:
    """What an extractor is opened with.

    Args:
        device: Where it shall compute.
        reporter: Sees downloads.
        inception: Path of Inception's weights, where the user named one.
        clip_model: Repository, `ORG/NAME[@REVISION]`, or folder of a CLIP.
    """

    device: torch.device
    reporter: Reporter
    inception: Path | None = None
    clip_model: str | None = None


EXTRACTORS: Registry[Callable[[Opening], Extractor]] = Registry("extractor")


def _read_ahead(
    pictures: Iterable[Callable[[], Picture]], prepare: Callable[[Picture], NDArray[np.float32]], batch: int
) -> Iterator[NDArray[np.float32]]:
    """Prepared batches in order; at most two batches more than is asked for are in memory."""
    left, waiting = iter(pictures), deque[Future[NDArray[np.float32]]]()
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            while True:
                ahead = islice(left, 3 * batch - len(waiting))
                waiting.extend(pool.submit(lambda read=read: prepare(read())) for read in ahead)  # type: ignore[misc]
                if not waiting:
                    return
                yield np.stack([waiting.popleft().result() for _ in range(min(batch, len(waiting)))])
        finally:
            for future in waiting:
                future.cancel()

"""Extractors: networks from images to features, in batches that are read ahead."""

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
from rapm_cli.extractors.preparation import ImageArray, Preparation

BATCH = 32
THREADS = 4  # threads that read and prepare images; decoding and resizing release the interpreter lock


@dataclass(frozen=True)
class Extractor:
    """A network from images to features.

    Args:
        identity: Text that identifies its features: network, weights, and preparation of an image.
        width: D, the number of values in a feature.
        prepare: (H, W, 3) uint8 image to the (3, S, S) float32 input of the network.
        network: (B, 3, S, S) float32 on the device to (B, D) features.
        device: Device that it computes on.
        answers: (B, 3, S, S) float32 to (B, A) int64 classes of attributes; None if it reads no attributes. A network
            with answers takes RGB in [0, 1].
    """

    identity: str
    width: int
    prepare: Callable[[ImageArray], NDArray[np.float32]]
    network: Callable[[Tensor], Tensor]
    device: torch.device
    answers: Callable[[Tensor], Tensor] | None = None

    def after(self, preparation: Preparation) -> "Extractor":
        """Return the same extractor with another preparation before its own."""
        if preparation.side_px is None:
            return self
        prepare = self.prepare
        identity = f"{self.identity}, after {preparation.spec}"
        return replace(self, identity=identity, prepare=lambda image: prepare(preparation(image)))

    @torch.no_grad()
    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return (N, D) features and (N, A) answers of float images, before they are rounded to bytes.

        Args:
            images: (N, 3, S, S) RGB in [0, 1]; the extractor has `answers`.
        """
        assert self.answers is not None
        parts = images.split(BATCH)
        return torch.cat(list(map(self.network, parts))), torch.cat(list(map(self.answers, parts)))

    @torch.no_grad()
    def features(self, images: Iterable[Callable[[], ImageArray]], batch: int = BATCH) -> Iterator[Tensor]:
        """Yield (B, D) float32 features on the CPU, in order; the next images are read meanwhile.

        Args:
            images: Functions that read one (H, W, 3) uint8 image each; other threads call them.
            batch: B, the number of images in every batch but the last.
        """
        for prepared in _read_ahead(images, self.prepare, batch):
            with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):  # float32 in convolutions too
                found = self.network(torch.from_numpy(prepared).to(self.device)).float().cpu()
            yield found


@dataclass(frozen=True)
class Opening:
    """Settings to open an extractor with.

    Args:
        device: Device to compute on.
        reporter: Reporter of downloads.
        inception: Path of Inception's weights; None for the usual places.
        clip_model: Repository `ORG/NAME[@REVISION]` or folder of a CLIP model; None for the usual one.
    """

    device: torch.device
    reporter: Reporter
    inception: Path | None = None
    clip_model: str | None = None


EXTRACTORS: Registry[Callable[[Opening], Extractor]] = Registry("extractor")


def _read_ahead(
    images: Iterable[Callable[[], ImageArray]], prepare: Callable[[ImageArray], NDArray[np.float32]], batch: int
) -> Iterator[NDArray[np.float32]]:
    """Yield prepared batches in order; at most two batches wait in memory."""
    left, waiting = iter(images), deque[Future[NDArray[np.float32]]]()
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

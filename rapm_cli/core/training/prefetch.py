"""The next batch is read while the present one is trained on."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

K = TypeVar("K")
V = TypeVar("V")


def prefetched(load: Callable[[K], V], keys: Iterable[K]) -> Iterator[tuple[K, V]]:
    """Every key with what `load` makes of it, in order; one load runs ahead, in a thread of its own."""
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as reader:
        waiting = None
        for key in keys:
            started = key, reader.submit(load, key)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = started
        if waiting is not None:
            yield waiting[0], waiting[1].result()

"""Work on many items: in threads, in order, counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
Item = TypeVar("Item")
Progress = Callable[[str, int, int], None]
"""Called with a domain, the samples done, and the samples in all."""


def in_order(work: Callable[[Item], T], items: Iterable[Item], workers: int) -> Iterator[T]:
    """Work in threads, a few items ahead, and yield in the order of the items."""
    if workers == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[T]] = deque()
        try:
            for item in items:
                ahead.append(pool.submit(work, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def counted(items: Iterable[T], domain: str, total: int, progress: Progress | None) -> Iterator[T]:
    """The items; progress is called after each."""
    for done, item in enumerate(items, start=1):
        yield item
        if progress is not None:
            progress(domain, done, total)

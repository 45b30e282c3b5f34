"""Reads of object storage that run ahead: what comes later in the order is on its way while earlier samples
are decoded. Which samples these are is known, because the order is a function of the position."""

from __future__ import annotations

import bisect
import contextlib
import functools
import queue
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from ppar_dist.data.order import Order
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.remote_domain import RemoteShards
from ppar_dist.storage.unit_file import Unit

_GROUPS = 64  # looked ahead at most: positions cost time to locate
_REMEMBERED = 4096  # units that this process has asked for
_KNOWN = 1 << 16  # units whose next use is remembered: some MB

Group = TypeVar("Group")
Needs = Callable[[Group], Iterable[tuple[DomainIndex, int]]]


def ahead(groups: Iterable[Group], needs: Needs[Group], threads: int) -> Iterator[Group]:
    """The same groups of samples, while what the next ones need of object storage is being fetched.

    Args:
        groups: as micro-batches.
        needs: the samples of a group, by domain and number.
        threads: fetches at a time; 0: none runs ahead.
    """
    if not threads:
        yield from groups
        return
    fetches, coming = _Fetches(threads), deque[Group]()
    try:
        for group in groups:
            coming.append(group)
            for index, sample in needs(group):
                fetches.begin(index, sample)
            while len(coming) > _GROUPS or (coming and fetches.under_way() >= threads):
                yield coming.popleft()
        yield from coming
    finally:
        fetches.end()


def threads_for(indexes: Sequence[DomainIndex]) -> int:
    """Fetches at a time that run ahead: 0 where no domain is on object storage."""
    return max((index.node.ahead for index in indexes if isinstance(index.reader, RemoteShards)), default=0)


class _Fetches:
    """What is being fetched by this process, by threads that do not keep it from ending."""

    def __init__(self, threads: int) -> None:
        self._asked: OrderedDict[Unit, None] = OrderedDict()
        self._waiting: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._count, self._lock, self._has_ended = 0, threading.Lock(), False
        self._threads = threads
        for _ in range(threads):
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def under_way(self) -> int:
        """Fetches that have not ended."""
        return self._count

    def begin(self, index: DomainIndex, sample: int) -> None:
        """Begin to fetch what a sample needs and the node does not hold."""
        shards = index.reader
        if not isinstance(shards, RemoteShards) or not index.is_sound(sample):
            return
        number, span = index.place(sample)
        unit = shards.unit(number, span)
        if unit in self._asked:
            return
        self._asked[unit] = None
        if len(self._asked) > _REMEMBERED:
            self._asked.popitem(last=False)
        if not shards.cache.has(unit):
            with self._lock:
                self._count += 1
            self._waiting.put(functools.partial(shards.fetch, number, span))

    def end(self) -> None:
        """Begin no more; what is under way is not waited for."""
        self._has_ended = True
        for _ in range(self._threads):
            self._waiting.put(None)

    def _work(self) -> None:
        while (fetch := self._waiting.get()) is not None:
            if not self._has_ended:
                with contextlib.suppress(Exception):  # it comes up where the sample is read
                    fetch()
            with self._lock:
                self._count -= 1


class OrderToCome:
    """When the units that a node holds are needed next: what is needed last makes room for others."""

    def __init__(self, order: Order, indexes: Sequence[DomainIndex]) -> None:
        self.order, self.indexes = order, indexes
        self.position = 0  # of the samples that are being made
        self._known: dict[Unit, int] = {}  # true until its position has passed
        remote = [(number, index.reader) for number, index in enumerate(indexes)]
        self._domains = {
            shards.digest: number for number, shards in remote if isinstance(shards, RemoteShards)
        }
        for _, shards in remote:
            if isinstance(shards, RemoteShards):
                shards.cache.expect(self.next_use)

    def next_use(self, unit: Unit) -> float | None:
        """The position at which a unit of a shard is needed next; None where that is unknown."""
        if self.order.rare is not None:
            return None
        known = self._known.get(unit, -1)
        if known > self.position:
            return known
        domain = self._domains.get(unit.domain)
        if domain is None:
            return None
        index = self.indexes[domain]
        first = _first_sample(index, unit)
        samples = range(first, min(first + index.node.together, len(index)))
        found = self.order.next_use(domain, samples, self.position + 1)
        if found is not None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            self._known[unit] = found
        return found


def _first_sample(index: DomainIndex, unit: Unit) -> int:
    """The first sample of a unit: samples are in the order of shards, and of places within them."""

    def place(number: int) -> tuple[int, int]:
        record = index.records[number]
        return int(record["shard"]), max(int(record["image_offset"]), int(record["label_offset"]))

    found = bisect.bisect_left(range(len(index)), (unit.shard, unit.start), key=place)
    return found - found % index.node.together

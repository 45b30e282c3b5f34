"""What a read through the node's cache costs, against a plain read of a file, and how often the node has it.

    python -m benchmarks.speed.cache_reads [--out /local/disk] [--rounds 7] [--held 20000 200000]

Units of 1.6 MB (16 samples of 100 kB) lie in a cache and, one after another, in a plain file; both are in the
page cache of the machine. A round reads the same 100 kB pieces in the same random order in turn:

* ``pread``     from the plain file, which is open
* ``open``      from the plain file, opened for each read
* ``verified``  from the plain file, with the CRC-32 of what was read
* ``cache``     through the cache, with a position of next use (no difference where the node has all)

Then epochs of the training order are read through caches that hold a part of the units, and for each the rate
of reads that needed no fetch is printed: with ``Order.next_use`` and without. A unit that comes again within
its window is a hit; the rest is what stayed from the epoch before.

Last, small units are stored into a cache that is full of them, as many as ``--held`` says: seconds for each,
with what goes for it.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

from benchmarks.arguments import described
from ppar_dist.data.order import DomainShare, Order
from ppar_dist.storage.cache import NodeCache
from ppar_dist.storage.unit_file import Unit, disk_bytes, file_bytes, unit_name

SAMPLE, BLOCK, WINDOW = 100_000, 16, 8
UNIT = SAMPLE * BLOCK
PIECES = 500  # reads in a round
EPOCHS = 4
STORED = 600  # units, into a full cache


def unit(number: int, size: int = UNIT) -> Unit:
    """A unit of one block of samples."""
    return Unit("ab", 0, number * size, (number + 1) * size)


def never() -> bytes:
    raise AssertionError("the node has it")


def readers(folder: Path, units: int) -> dict[str, Callable[[int], bytes]]:
    """The contestants, by name: each reads a sample by its number."""
    plain, cache = folder / "plain", NodeCache(folder / "cache", units * disk_bytes(unit(0)))
    with plain.open("wb") as file:
        for number in range(units):
            content = random.Random(number).randbytes(UNIT)
            file.write(content)
            cache.read(unit(number), 0, 1, lambda content=content: content)  # type: ignore[misc]
    descriptor = os.open(plain, os.O_RDONLY)

    def opened(sample: int) -> bytes:
        file = os.open(plain, os.O_RDONLY)
        raw = os.pread(file, SAMPLE, sample * SAMPLE)
        os.close(file)
        return raw

    def verified(sample: int) -> bytes:
        raw = os.pread(descriptor, SAMPLE, sample * SAMPLE)
        zlib.crc32(raw)
        return raw

    def cached(sample: int) -> bytes:
        number, place = divmod(sample, BLOCK)
        return cache.read(unit(number), place * SAMPLE, SAMPLE, never)

    return {
        "pread": lambda sample: os.pread(descriptor, SAMPLE, sample * SAMPLE),
        "open": opened,
        "verified": verified,
        "cache": cached,
    }


def costs(folder: Path, units: int, rounds: int) -> dict[str, list[float]]:
    """Microseconds per read of each contestant and round; the first round only warms up."""
    contestants, rng = readers(folder, units), random.Random(0)
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        samples = [rng.randrange(units * BLOCK) for _ in range(PIECES)]
        sums = {}
        for name in list(contestants)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            read = [contestants[name](sample) for sample in samples]
            spent = time.perf_counter() - began
            sums[name] = [zlib.crc32(each) for each in read]
            if number:
                taken[name].append(1e6 * spent / PIECES)
        assert all(each == sums["pread"] for each in sums.values())
    return taken


def hit_rate(folder: Path, units: int, part: float, expects: bool) -> float:
    """Reads without a fetch, of epochs in the training order, where a part of the units has room."""
    small, position, fetched = 1000, 0, 0  # bytes of a unit do not matter here
    order = Order([DomainShare("a", units * BLOCK, 1.0)], 0, BLOCK, WINDOW)
    cache = NodeCache(folder, round(part * units) * disk_bytes(unit(0, small)))

    def next_use(of: Unit) -> int | None:
        first = of.start // small * BLOCK
        return order.next_use(0, range(first, first + BLOCK), position + 1)

    def fetch() -> bytes:
        nonlocal fetched
        fetched += 1
        return bytes(small)

    if expects:
        cache.expect(next_use)
    for position in range(EPOCHS * units * BLOCK):
        cache.read(unit(order.locate(position).sample // BLOCK, small), 0, 1, fetch)
    return 1 - fetched / (EPOCHS * units * BLOCK)


def store_times(folder: Path, held: int, expects: bool) -> list[float]:
    """Seconds for each unit that is stored, in the training order, where four fifths of a domain are held."""
    small, position, units = 1000, 0, held * 5 // 4
    order = Order([DomainShare("a", units * BLOCK, 1.0)], 0, BLOCK, WINDOW)
    cache = NodeCache(folder, held * disk_bytes(unit(0, small)))
    folder.mkdir(mode=0o700)
    for number in random.Random(0).sample(range(units), held):
        path = folder / unit_name(unit(number, small))
        path.touch()
        os.truncate(path, file_bytes(unit(number, small)))
    cache.prepare()

    def next_use(of: Unit) -> int | None:
        first = of.start // small * BLOCK
        return order.next_use(0, range(first, first + BLOCK), position + 1)

    if expects:
        cache.expect(next_use)
    taken: list[float] = []
    while len(taken) < STORED:
        wanted = unit(order.locate(position).sample // BLOCK, small)
        if not cache.has(wanted):
            began = time.perf_counter()
            cache.read(wanted, 0, 1, lambda: bytes(small))
            taken.append(time.perf_counter() - began)
        position += 1
    return taken


def print_store_times(folder: Path, held: list[int]) -> None:
    """What storing costs, with the order to come and without."""
    print(f"\nmilliseconds per unit of 1 kB that is stored into a full cache, of {STORED}: mean, longest")
    print("held       next use           longest unread")
    for count in held:
        row = []
        for expects in (True, False):
            taken = store_times(folder / f"held-{count}-{expects}", count, expects)
            row.append(f"{1e3 * statistics.mean(taken):8.2f} {1e3 * max(taken):9.1f}")
        print(f"{count:8d} {row[0]} {row[1]}", flush=True)


def main() -> None:
    """Print the tables."""
    parser = described(__doc__)
    parser.add_argument("--out", type=Path, help="a folder on the disk to measure; default: temporary")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--units", type=int, default=100)
    parser.add_argument("--held", type=int, nargs="*", default=[20_000, 200_000])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.out, prefix="cache-") as name:
        folder = Path(name)
        taken = costs(folder, options.units, options.rounds)
        print(f"100 kB, microseconds per read; medians of {options.rounds} rounds of {PIECES} reads")
        for each, found in taken.items():
            print(f"{each:9s} {statistics.median(found):7.1f}   [{min(found):.1f}, {max(found):.1f}]")
        more = [ours - plain for ours, plain in zip(taken["cache"], taken["pread"], strict=True)]
        print(f"cache - pread, paired: {statistics.median(more):.1f}   [{min(more):.1f}, {max(more):.1f}]")
        print(f"\nreads without a fetch, {EPOCHS} epochs of {options.units} units of {BLOCK} samples")
        print("room for   next use   longest unread")
        for part in (0.1, 0.25, 0.5, 0.75, 1.0):
            rates = [
                hit_rate(folder / f"{part}-{expects}", options.units, part, expects)
                for expects in (True, False)
            ]
            print(f"{part:8.0%} {rates[0]:10.2%} {rates[1]:16.2%}")
        print_store_times(folder, options.held)


if __name__ == "__main__":
    main()

"""The cache of a node: content always right, the bound kept, no fetch that is not needed."""

from __future__ import annotations

import functools
import logging
import multiprocessing
import os
import pickle
import random
import resource
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppar_dist.errors import UserError
from ppar_dist.storage import cache_folder
from ppar_dist.storage.cache import NodeCache
from ppar_dist.storage.unit_file import Unit, disk_bytes, file_bytes, part_name, unit_name

SIZE = 50_000  # bytes of a unit in most tests
ROOM = disk_bytes(Unit("0", 0, 0, SIZE))


def unit(number: int, size: int = SIZE) -> Unit:
    return Unit("0123456789abcdef", number // 10, number * SIZE, number * SIZE + size)


@functools.cache
def content(of: Unit) -> bytes:
    return random.Random(repr(of)).randbytes(of.bytes)


class Storage:
    """Gives content, and counts."""

    def __init__(self) -> None:
        self.fetched: list[Unit] = []

    def read(self, cache: NodeCache, of: Unit, start: int = 0, size: int | None = None) -> None:
        """Read through the cache; the content is right."""
        size = of.bytes - start if size is None else size

        def fetch() -> bytes:
            self.fetched.append(of)
            return content(of)

        assert cache.read(of, start, size, fetch) == content(of)[start : start + size]


def on_disk(folder: Path) -> int:
    """Bytes of all files but the one that counts, while nobody adds or removes any."""
    with cache_folder.counting(folder, 10.0) as count:
        assert count is not None
        return sum(each.stat().st_size for each in folder.iterdir() if each.name != cache_folder.COUNT)


def counted(folder: Path) -> int:
    return int((folder / cache_folder.COUNT).read_bytes())


def never() -> bytes:
    raise AssertionError("the node has it")


@settings(max_examples=40, deadline=None)
@given(
    reads=st.lists(st.tuples(st.integers(0, 7), st.integers(0, 99_999), st.integers(0, 99_999)), max_size=25),
    room=st.integers(0, 5),
    expects=st.booleans(),
)
def test_reads_of_any_sizes_are_right_and_the_bound_is_kept(
    reads: list[tuple[int, int, int]], room: int, expects: bool
) -> None:
    storage = Storage()
    with tempfile.TemporaryDirectory() as folder:
        cache = NodeCache(Path(folder) / "cache", room * ROOM)
        cache.prepare()
        if expects:
            cache.expect(lambda each: (each.start * 7919) % 31 or None)
        for number, start, size in reads:
            of = unit(number, 1 + number * 12_345)
            start %= of.bytes
            storage.read(cache, of, start, min(size, of.bytes - start))
            assert on_disk(cache.folder) <= cache.bytes_used() <= room * ROOM
            assert counted(cache.folder) == cache.bytes_used()


def fewest_fetches(reads: list[int], room: int) -> int:
    """By trying everything: whatever is fetched is kept or not, and anything may go for it."""

    @functools.cache
    def best(at: int, held: frozenset[int]) -> int:
        if at == len(reads):
            return 0
        if reads[at] in held:
            return best(at + 1, held)
        more = held | {reads[at]}
        options = [held, *([more] if len(more) <= room else [more - {each} for each in held])]
        return 1 + min(best(at + 1, each) for each in options)

    return best(0, frozenset())


@settings(max_examples=60, deadline=None)
@given(reads=st.lists(st.integers(0, 5), max_size=16), room=st.integers(1, 4))
def test_with_what_is_expected_no_order_of_eviction_fetches_less(reads: list[int], room: int) -> None:
    storage, now = Storage(), 0

    def next_use(each: Unit) -> float:
        return next((at for at in range(now + 1, len(reads)) if unit(reads[at]) == each), len(reads))

    with tempfile.TemporaryDirectory() as folder:
        cache = NodeCache(Path(folder), room * ROOM)
        cache.expect(next_use)
        for now, number in enumerate(reads):  # noqa: B007
            storage.read(cache, unit(number))
    assert len(storage.fetched) == fewest_fetches(reads, room)


def test_many_units_in_the_order_of_epochs_come_near_the_optimum(tmp_path: Path) -> None:
    """Batches of evictions and the memory of what was refused cost little: 200 units, room for 50."""
    rng, reads = random.Random(0), []
    for _ in range(4):
        reads += rng.sample(range(200), 200)
    after: dict[int, list[int]] = {number: [] for number in range(200)}
    for at in reversed(range(len(reads))):
        after[reads[at]].append(at)

    def next_use(each: Unit) -> float:
        uses = after[each.start // SIZE]
        return uses[-1] if uses else len(reads)

    storage, cache, room = Storage(), NodeCache(tmp_path, 50 * 4096), 50
    cache.expect(next_use)
    held: set[int] = set()
    fetches = 0
    for number in reads:
        after[number].pop()
        if number not in held:  # Belady's rule, once more
            fetches += 1
            held.add(number)
            if len(held) > room:
                held.remove(max(held, key=lambda each: after[each][-1] if after[each] else len(reads)))
        storage.read(cache, unit(number, 1000))
    assert len(storage.fetched) <= 1.05 * fetches


def test_the_folder_is_listed_once_for_many_evictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listings = []

    def listed(folder: Path) -> tuple[list[Unit], list[Unit]]:
        listings.append(folder)
        return cache_folder.units_in(folder)

    monkeypatch.setattr("ppar_dist.storage.cache.units_in", listed)
    cache, storage = NodeCache(tmp_path, 80 * 4096), Storage()
    for number in range(80 + 100):
        storage.read(cache, unit(number, 1000))
    assert cache.bytes_used() == counted(tmp_path) == 80 * 4096
    assert len(listings) <= 2 + 100 // 10


def test_what_others_have_removed_is_not_counted_twice(tmp_path: Path) -> None:
    """Caches with lists of their own on one folder, as in several processes, take the same victims."""
    storage, caches = Storage(), [NodeCache(tmp_path, 40 * 4096) for _ in range(3)]
    for cache in caches:
        cache.expect(lambda each: float((each.start * 7919) % 1009))
    for number in range(40):
        storage.read(caches[0], unit(number, 1000))
    for number in range(40, 200):
        storage.read(caches[number % 3], unit(number, 1000))
        assert counted(tmp_path) == caches[0].bytes_used() <= 40 * 4096
    soon = sorted(range(200), key=lambda number: (number * SIZE * 7919) % 1009)[:20]
    assert all(caches[0].has(unit(number, 1000)) for number in soon)


def test_without_expectation_the_longest_unread_goes(tmp_path: Path) -> None:
    storage, cache = Storage(), NodeCache(tmp_path, 3 * ROOM)
    for number in range(3):
        storage.read(cache, unit(number))
        os.utime(tmp_path / unit_name(unit(number)), (1000 + number, 1000 + number))
    storage.read(cache, unit(0))  # read again: now it is the latest
    storage.read(cache, unit(3))
    assert [cache.has(unit(number)) for number in range(4)] == [True, False, True, True]


def test_what_nobody_expects_goes_first(tmp_path: Path) -> None:
    storage, cache = Storage(), NodeCache(tmp_path, 2 * ROOM)
    storage.read(cache, unit(0))
    storage.read(cache, unit(1))
    cache.expect({unit(1): 1000.0, unit(2): 2000.0, unit(3): 3000.0}.get)
    storage.read(cache, unit(2))
    assert [cache.has(unit(number)) for number in range(3)] == [False, True, True]
    for late in (3, 4):  # needed later than all, or not known to be needed
        storage.read(cache, unit(late))
        assert not cache.has(unit(late))
    assert len(storage.fetched) == 5


def test_the_next_process_finds_all(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path / "a" / "b", 9 * ROOM)
    Storage().read(cache, unit(0))
    for later in (NodeCache(cache.folder, 9 * ROOM), pickle.loads(pickle.dumps(cache))):
        assert later.read(unit(0), 10, 20, never) == content(unit(0))[10:30]
    assert (tmp_path / "a" / "b").stat().st_mode & 0o777 == 0o700


def test_a_smaller_cache_on_the_folder_makes_it_smaller(tmp_path: Path) -> None:
    storage = Storage()
    for number in range(6):
        storage.read(NodeCache(tmp_path, 6 * ROOM), unit(number))
    (tmp_path / "not ours").write_bytes(b"x" * 10 * ROOM)
    small = NodeCache(tmp_path, 2 * ROOM)
    small.prepare()
    assert small.bytes_used() == counted(tmp_path) == 2 * ROOM
    assert (tmp_path / "not ours").exists()


@pytest.mark.parametrize("harm", ["a byte", "a checksum", "torn", "zeros", "another's"])
def test_what_is_damaged_is_fetched_again(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, cache = Storage(), NodeCache(tmp_path, 9 * ROOM)
    storage.read(cache, unit(0))
    storage.read(cache, unit(1))
    path = tmp_path / unit_name(unit(0))
    raw = bytearray(path.read_bytes())
    if harm == "another's":
        raw = bytearray((tmp_path / unit_name(unit(1))).read_bytes())
    elif harm == "torn":
        del raw[-20_000:]
    elif harm == "zeros":
        raw = bytearray(len(raw))
    else:
        raw[-20_000 if harm == "a byte" else 5] ^= 1
    path.write_bytes(raw)
    storage.read(cache, unit(0))
    assert "damaged" in caplog.text
    storage.read(cache, unit(0))
    assert storage.fetched == [unit(0), unit(1), unit(0)]
    assert counted(tmp_path) == 2 * ROOM
    cache.drop(unit(0))
    cache.drop(unit(0))
    assert not cache.has(unit(0))
    assert counted(tmp_path) == ROOM


def test_every_single_byte_is_covered(tmp_path: Path) -> None:
    """Wherever a bit flips, a read of all does not give other content."""
    small = unit(0, 100)
    cache, path = NodeCache(tmp_path, 9 * ROOM), tmp_path / unit_name(small)
    Storage().read(cache, small)
    raw = path.read_bytes()
    assert len(raw) == file_bytes(small)
    for at in range(len(raw)):
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :])
        again = Storage()
        again.read(cache, small)
        assert again.fetched == [small]


def test_a_fetch_that_raises_leaves_nothing(tmp_path: Path) -> None:
    cache, wrong = NodeCache(tmp_path, 9 * ROOM), OSError("storage is away")

    def fetch() -> bytes:
        raise wrong

    with pytest.raises(OSError, match="storage is away") as raised:
        cache.read(unit(0), 0, 10, fetch)
    assert raised.value is wrong
    assert [each.name for each in tmp_path.iterdir()] == [cache_folder.COUNT]
    assert counted(tmp_path) == 0


def test_content_of_another_length_is_given_and_not_kept(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 9 * ROOM)
    assert cache.read(unit(0), 2, 9, lambda: b"short") == b"ort"
    assert not cache.has(unit(0))
    assert cache.bytes_used() == counted(tmp_path) == 0


def test_the_part_of_a_dead_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, 3 * ROOM)
    for number in (0, 1):
        (tmp_path / part_name(unit(number))).write_bytes(b"half")
    living = cache_folder.lock(tmp_path / part_name(unit(1)), 1.0)
    assert living is not None
    cache.prepare()
    assert {each.name for each in tmp_path.iterdir()} == {cache_folder.COUNT, part_name(unit(1))}
    assert counted(tmp_path) == ROOM
    cache_folder.unlock(living)
    storage = Storage()
    storage.read(cache, unit(1))  # continued by who needs it
    assert cache.has(unit(1))
    assert storage.fetched == [unit(1)]


def test_who_fetches_for_too_long_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppar_dist.storage.cache.FETCH_S", 0.1)
    storage, cache = Storage(), NodeCache(tmp_path, 3 * ROOM)
    stopped = cache_folder.lock(tmp_path / part_name(unit(0)), 1.0)
    assert stopped is not None
    began = time.monotonic()
    for _ in range(20):
        storage.read(cache, unit(0))
    assert time.monotonic() - began < 1.0
    cache_folder.unlock(stopped)


def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    storage, cache = Storage(), NodeCache(tmp_path / "cache", 3 * ROOM)
    storage.read(cache, unit(0))
    for each in cache.folder.iterdir():
        each.unlink()
    cache.folder.rmdir()
    for _ in range(3):
        storage.read(cache, unit(0))
    assert cache.has(unit(0))
    assert len(storage.fetched) <= 3


@contextmanager
def full_disk(at: int) -> Iterator[None]:
    """No file of this process grows beyond ``at`` bytes."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (at, limit[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)


def test_without_room_on_the_disk_all_is_read_from_storage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage, cache = Storage(), NodeCache(tmp_path, 9 * ROOM)
    storage.read(cache, unit(0))
    with full_disk(SIZE // 2):
        for _ in range(3):
            storage.read(cache, unit(1))
            storage.read(cache, unit(0))
    assert storage.fetched == [unit(0), unit(1), unit(1), unit(1)]
    assert caplog.text.count("cannot be used") == 1
    assert {each.name for each in tmp_path.iterdir()} == {cache_folder.COUNT, unit_name(unit(0))}
    assert counted(tmp_path) == ROOM


@pytest.mark.parametrize("folder", ["/proc/self/cache", "/dev/null/cache"])
def test_a_folder_that_cannot_be_made_is_done_without(folder: str, caplog: pytest.LogCaptureFixture) -> None:
    storage, cache = Storage(), NodeCache(Path(folder), 9 * ROOM)
    cache.prepare()
    for _ in range(3):
        storage.read(cache, unit(0))
    assert len(storage.fetched) == 3
    assert [each.levelno for each in caplog.records] == [logging.WARNING]
    assert not cache.has(unit(0))
    assert cache.bytes_used() == 0


def _writable(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o777)


def _another_users(folder: Path) -> None:
    folder.mkdir()
    os.chown(folder, 12345, 12345)


def _another_users_link(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir()
    folder.symlink_to(folder.with_name("elsewhere"))
    os.chown(folder, 12345, 12345, follow_symlinks=False)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (_writable, "by its owner alone, .* has mode 0777; chmod go-w"),
        (Path.touch, "is a folder, got the file"),
        (_another_users, "belongs to user 12345; give another"),
        (_another_users_link, "belongs to user 12345; give another"),
    ],
)
def test_a_folder_that_others_can_change_is_refused(
    make: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    try:
        make(tmp_path / "cache")
    except PermissionError:
        pytest.skip("only root gives files away")
    cache = NodeCache(tmp_path / "cache", 9 * ROOM)
    with pytest.raises(UserError, match=reason):
        cache.prepare()
    Storage().read(cache, unit(0))  # and does no harm
    assert not cache.has(unit(0))


def test_threads_fetch_a_unit_once(tmp_path: Path) -> None:
    cache, fetched = NodeCache(tmp_path, 9 * ROOM), []

    def fetch() -> bytes:
        fetched.append(1)
        time.sleep(0.1)
        return content(unit(0))

    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(cache.read(unit(0), 0, SIZE, fetch))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == [1]
    assert found == [content(unit(0))] * 8


FORK = multiprocessing.get_context("fork")


def _read_together(folder: Path, log: Path) -> None:
    def fetch() -> bytes:
        with log.open("a") as file:
            file.write("x")
        time.sleep(0.02)
        return content(unit(0))

    cache = NodeCache(folder, 9 * ROOM)
    assert cache.read(unit(0), 7, 100, fetch) == content(unit(0))[7:107]


@pytest.mark.process
def test_processes_fetch_a_unit_once(tmp_path: Path) -> None:
    paths = tmp_path / "cache", tmp_path / "log"
    processes = [FORK.Process(target=_read_together, args=paths) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0] * 8
    assert paths[1].read_text() == "x"


MANY, HELD = 40, 10


def _read_for_ever(folder: Path, seed: int, expects: bool) -> None:
    rng, storage, cache = random.Random(seed), Storage(), NodeCache(folder, HELD * ROOM)
    if expects:
        cache.expect(lambda each: (each.start * 7919 + seed) % 1009)
    while True:
        of = unit(rng.randrange(MANY), rng.choice((SIZE, SIZE // 3)))
        start = rng.randrange(of.bytes)
        storage.read(cache, of, start, rng.randrange(of.bytes - start + 1))
        time.sleep(rng.uniform(0.0, 0.001))


@pytest.mark.process
def test_kills_at_any_moment(tmp_path: Path) -> None:
    """Others go on, all content is right, the bound is kept, and the next clears what the dead left."""
    rng, folder, number = random.Random(0), tmp_path / "cache", 0
    for each in range(MANY):
        content(unit(each)), content(unit(each, SIZE // 3))  # made before the forks
    readers: list[multiprocessing.process.BaseProcess] = []
    while number < 44:
        while len(readers) < 4:
            number += 1
            readers.append(FORK.Process(target=_read_for_ever, args=(folder, number, number % 2 == 0)))
            readers[-1].start()
        time.sleep(rng.uniform(0.005, 0.03))
        if folder.exists() and number % 3 == 0:
            assert on_disk(folder) <= HELD * ROOM
        victim = readers.pop(rng.randrange(4))
        victim.kill()
        victim.join(10)
        assert victim.exitcode == -signal.SIGKILL  # and not 1: of wrong content
    for reader in readers:
        reader.kill()
        reader.join(10)
    cache = NodeCache(folder, HELD * ROOM)
    cache.prepare()
    assert not list(folder.glob("*.part"))
    assert cache.bytes_used() == counted(folder) <= HELD * ROOM
    whole, _ = cache_folder.units_in(folder)
    assert whole
    for each in whole:
        assert cache.read(each, 0, each.bytes, never) == content(each)

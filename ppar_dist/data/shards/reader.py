"""Read members of shards at their offsets, and say what is wrong with a shard that does not have them."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from ppar_dist.data.shards.manifest import Shard
from ppar_dist.data.shards.sample import SampleError

_ASKED = 256  # shards whose sizes a thread asks for in turn
_THREADS = 16
OPEN_SHARDS = 32  # file descriptors held per domain and process


class Span(NamedTuple):
    """The bytes of a shard that are fetched together: of some samples that stand one after the other."""

    start: int
    stop: int


class Member(NamedTuple):
    """A file in a shard, and what to call it where it cannot be used."""

    shard: int  # its number
    offset: int
    size: int
    crc: int | None  # CRC-32 of its bytes; None: they are not compared
    where: str  # shard and key
    kind: str  # image or label

    def has(self, raw: bytes) -> bool:
        """Whether these are its bytes."""
        return len(raw) == self.size and (self.crc is None or zlib.crc32(raw) == self.crc)


class Shards(Protocol):
    """The shards of a domain, wherever they lie."""

    shards: tuple[Shard, ...]

    def sizes_now(self) -> Iterator[int | None]:
        """Bytes that each shard has now; None where it is missing."""

    def read(self, member: Member, span: Callable[[], Span] | None = None) -> bytes:
        """The bytes of a member; raises SampleError."""


class ShardReader:
    """The shards of a domain, opened when first needed, and again after an error."""

    def __init__(self, folder: Path, shards: Sequence[Shard]) -> None:
        self.folder, self.shards = folder, tuple(shards)
        self._prefix = os.path.join(folder, "")
        self._open: dict[int, int] = {}  # number to file descriptor
        self._first: dict[int, tuple[int, int]] = {}  # size and mtime when each was opened first

    @property
    def num_open(self) -> int:
        """Shards that are open now."""
        return len(self._open)

    def size_now(self, number: int) -> int | None:
        """Bytes of a shard's file; None where there is no regular file."""
        try:
            # A Path would cost more than the call.
            found = os.stat(f"{self._prefix}{self.shards[number].name}")
        except OSError:
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else None

    def sizes_now(self) -> Iterator[int | None]:
        """``size_now`` of all shards, many asked at the same time: on network storage each takes a while."""
        starts = range(0, len(self.shards), _ASKED)
        parts = [range(start, min(start + _ASKED, len(self.shards))) for start in starts]
        if len(parts) < 2:
            yield from map(self.size_now, range(len(self.shards)))
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            for found in pool.map(lambda part: [self.size_now(number) for number in part], parts):
                yield from found

    def read(self, member: Member, span: Callable[[], Span] | None = None) -> bytes:
        """The bytes of a member; ``span`` is for shards elsewhere.

        Raises:
            SampleError: the shard is missing, unreadable, truncated or changed, or the checksum is another.
        """
        try:
            raw = self._read(member)
        except OSError:
            self._close(member.shard)  # perhaps a stale handle of a network file system: open it again
            raw = self._read_or_say_why(member)
        if member.has(raw):
            return raw
        error = self._what_happened(member, member.size - len(raw))
        self._close(member.shard)
        raise error

    def _read_or_say_why(self, member: Member) -> bytes:
        try:
            return self._read(member)
        except FileNotFoundError as error:
            detail = f"cannot read the shard: {error.strerror}; bring it back"
            raise SampleError(member.where, "shard_missing", detail) from None
        except OSError as error:
            self._close(member.shard)
            detail = f"cannot read the shard: {error.strerror}"
            raise SampleError(member.where, "shard_unreadable", detail) from None

    def _read(self, member: Member) -> bytes:
        file, size, offset = self._file(member.shard), member.size, member.offset
        raw = os.pread(file, size, offset)
        while len(raw) < size and (more := os.pread(file, size - len(raw), offset + len(raw))):
            raw += more
        return raw

    def _file(self, number: int) -> int:
        if number not in self._open:
            if len(self._open) >= OPEN_SHARDS:
                self._close(next(iter(self._open)))
            path = self.folder / self.shards[number].name
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe must not be waited for
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                os.close(file)
                raise OSError(0, "not a regular file")
            self._open[number] = file
            self._first.setdefault(number, (found.st_size, found.st_mtime_ns))
        return self._open[number]

    def _what_happened(self, member: Member, short: int) -> SampleError:
        """Why a member is not what was indexed: ``short`` bytes of it were not there."""
        number, where = member.shard, member.where
        try:
            now = os.fstat(self._open[number])
        except OSError as error:
            return SampleError(where, "shard_unreadable", f"cannot read the shard: {error.strerror}")
        indexed = self.shards[number].bytes
        if (now.st_size, now.st_mtime_ns) != self._first[number]:
            return SampleError(
                where, "shard_changed", "the shard was written to while in use; index it again"
            )
        if short:
            return SampleError(where, "truncated", f"the shard ends {short} bytes early; copy it again")
        if now.st_size != indexed:
            detail = f"the shard has {now.st_size} bytes, its index says {indexed}; copy or index it again"
            return SampleError(where, "shard_changed", detail)
        detail = f"the {member.kind} is not what was indexed (CRC-32 differs); copy or index the shard again"
        return SampleError(where, "checksum", detail)

    def _close(self, number: int) -> None:
        if number in self._open:
            os.close(self._open.pop(number))

    def __del__(self) -> None:
        for file in self._open.values():
            os.close(file)

"""A byte range of a shard as a file of a cache: its content behind a CRC-32 of each piece.

A read verifies the pieces that it touches, and no others. The name tells what the content is, and so how long
it is; the checksums begin with that of the name. What was torn, mixed up or written over does not pass.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from typing import NamedTuple

_PIECE = 16 << 10  # bytes; reads of 100 kB verify little more than they need
_DISK_BLOCK = 4096  # file systems give whole blocks
_NAME = re.compile(r"([0-9a-f]{1,128})-([0-9]{1,20})-([0-9]{1,20})-([0-9]{1,20})\.(unit|part)")


class Unit(NamedTuple):
    """What a cache holds or does not hold: bytes [start, stop) of a shard of a domain."""

    domain: str  # hex digest of the domain's content
    shard: int
    start: int
    stop: int

    @property
    def bytes(self) -> int:
        """How long its content is."""
        return self.stop - self.start


def unit_name(unit: Unit) -> str:
    """The name of a unit's file."""
    return f"{unit.domain}-{unit.shard}-{unit.start}-{unit.stop}.unit"


def part_name(unit: Unit) -> str:
    """The name of a unit's file while it is written."""
    return f"{unit.domain}-{unit.shard}-{unit.start}-{unit.stop}.part"


def named_unit(name: str) -> tuple[Unit, bool] | None:
    """The unit that a file name tells, and whether the file is whole; None of other files."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    return Unit(found[1], int(found[2]), int(found[3]), int(found[4])), found[5] == "unit"


def file_bytes(unit: Unit) -> int:
    """How long a unit's file is."""
    return _table_bytes(unit) + unit.bytes


def disk_bytes(unit: Unit) -> int:
    """What a unit's file takes of a disk, in whole blocks."""
    return -(-file_bytes(unit) // _DISK_BLOCK) * _DISK_BLOCK


def write_unit(file: int, unit: Unit, content: bytes) -> None:
    """Write a unit's content and its checksums into an open file, instead of what the file holds.

    Raises:
        OSError: no room, for one.
    """
    seed, view = zlib.crc32(unit_name(unit).encode()), memoryview(content)
    crcs = [zlib.crc32(view[at : at + _PIECE], seed) for at in range(0, len(content), _PIECE)]
    os.ftruncate(file, 0)
    with open(file, "wb", closefd=False) as whole:
        whole.seek(0)
        whole.write(struct.pack(f"<{len(crcs)}I", *crcs))
        whole.write(content)


def read_unit(file: int, unit: Unit, start: int, size: int) -> bytes | None:
    """Bytes [start, start + size) of a unit's content from its open file; None where they are not its."""
    first, last = start // _PIECE, -(-(start + size) // _PIECE)
    begin, end = first * _PIECE, min(last * _PIECE, unit.bytes)
    table = os.pread(file, 4 * (last - first), 4 * first)
    raw = os.pread(file, end - begin, _table_bytes(unit) + begin)
    if len(table) < 4 * (last - first) or len(raw) < end - begin:
        return None
    seed, view = zlib.crc32(unit_name(unit).encode()), memoryview(raw)
    for number, (crc,) in enumerate(struct.iter_unpack("<I", table)):
        if zlib.crc32(view[number * _PIECE : (number + 1) * _PIECE], seed) != crc:
            return None
    return raw[start - begin : start - begin + size]


def _table_bytes(unit: Unit) -> int:
    return 4 * -(-unit.bytes // _PIECE)

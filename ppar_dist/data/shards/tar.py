"""Where the members of a tar are, from its headers alone, in bounded time and memory.

``tarfile`` parses one header block; the walk from header to header is done here, because tarfile's own
reads headers of any size into memory, searches them in quadratic time, recurses from one to the next, may
go backwards, and stops in silence at the first block it cannot read. Understood: ustar, pax (path and size),
GNU long names; of sparse files, links and devices only that they are there.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from ppar_dist.data.shards.sample import SampleError

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_LONGEST_HEADER = 64 << 10  # bytes of names and attributes; names are shorter
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_USED, _SPARSE = (b"path", b"size"), b"GNU.sparse."
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """One member: its data are bytes [offset, offset + size) of the tar."""

    name: str  # as stored, never a path to open; bytes that are not UTF-8 are lone surrogates
    offset: int
    size: int
    plain: bool  # False: a folder, link, device or sparse file
    folder: bool


def members(path: Path, where: str) -> Iterator[Member]:
    """The members of a tar in their order.

    Raises:
        SampleError: the tar is cut off ("truncated") or damaged, or cannot be read ("shard_unreadable");
            whatever came before has been given. ``where`` begins the message.
    """
    try:
        with path.open("rb") as stream:
            end = os.fstat(stream.fileno()).st_size
            yield from _Walk(stream, end, where).members()
    except OSError as error:
        raise SampleError(where, "shard_unreadable", f"cannot read the shard: {error.strerror}") from None


class _Walk:
    """The walk through one tar of ``end`` bytes. ``at`` only ever grows, by a block or more."""

    def __init__(self, stream: BinaryIO, end: int, where: str) -> None:
        self.stream, self.end, self.where, self.at = stream, end, where, 0

    def members(self) -> Iterator[Member]:
        """The files of the tar, in order; raises what the module's ``members`` does."""
        extended: dict[str, bytes] = {}  # what pax and GNU headers say of the member to come
        announced = (
            False  # a member must come: such headers, of a wrong size, may have swallowed all there were
        )
        while (header := self._header()) is not None:
            announced = header.type in (*_PAX, *_LONG) or (announced and header.type == tarfile.XGLTYPE)
            if header.type in _PAX:
                self._extend(extended, _pax_records(self._data(header), self))
            elif header.type in _LONG:
                name = self._data(header).partition(b"\0")[0]
                if header.type == tarfile.GNUTYPE_LONGNAME:
                    self._extend(extended, {"path": name})
            elif header.type == tarfile.XGLTYPE:
                self._refuse_global(_pax_records(self._data(header), self))
            else:
                yield self._member(header, extended)
                extended = {}
        if announced:
            raise self.damaged(f"the header before byte {self.at} belongs to no member")
        self._check_end()

    def _extend(self, extended: dict[str, bytes], more: dict[str, bytes]) -> None:
        """Programs differ in which of two headers they believe: a member that has two is refused."""
        if twice := extended.keys() & more.keys():
            raise self.damaged(f"two headers give the {min(twice)} of one member before byte {self.at}")
        extended |= more

    def _header(self) -> tarfile.TarInfo | None:
        """The header at ``at``, which moves past it; None for the block of zeros that ends a tar."""
        block = self._read(_BLOCK)
        try:
            header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except (tarfile.TarError, ValueError) as error:
            if block and block.count(0) == len(block) == _BLOCK:
                return None
            raise self._no_header(block, error) from None
        if header.size < 0:
            raise self.damaged(f"a member of {header.size} bytes at byte {self.at}")
        self.at += _BLOCK
        if header.type == tarfile.GNUTYPE_SPARSE:
            self._skip_sparse_map(block[482] != 0)
        return header

    def _no_header(self, block: bytes, error: Exception) -> SampleError:
        if self.at == 0:
            detail = f"not a complete, uncompressed tar ({error}); copy it again"
            return SampleError(self.where, "truncated" if len(block) < _BLOCK else "damaged", detail)
        if len(block) < _BLOCK:
            return SampleError(
                self.where, "truncated", f"it ends at byte {self.at} without an end mark; copy it again"
            )
        return self.damaged(f"unreadable data after byte {self.at}")

    def _skip_sparse_map(self, more: bool) -> None:
        while more:
            block = self._read(_BLOCK)
            if len(block) < _BLOCK:
                raise self._cut("a sparse file")
            self.at += _BLOCK
            more = block[504] != 0

    def _data(self, header: tarfile.TarInfo) -> bytes:
        """What a header of names and attributes holds."""
        if header.size > _LONGEST_HEADER:
            raise self.damaged(f"a header of {header.size} bytes at byte {self.at}, names are shorter")
        data = self._read(_blocks(header.size))
        if len(data) < _blocks(header.size):
            raise self._cut("a header")
        if any(data[header.size :]):  # some programs read on there
            raise self.damaged(f"a header with more than its {header.size} bytes at byte {self.at}")
        self.at += len(data)
        return data[: header.size]

    def _member(self, header: tarfile.TarInfo, extended: dict[str, bytes]) -> Member:
        sparse = header.type == tarfile.GNUTYPE_SPARSE or "sparse" in extended
        name = header.name
        if "path" in extended:
            name = extended["path"].decode("utf-8", "surrogateescape")
        has_data = header.isreg() or header.type not in tarfile.SUPPORTED_TYPES
        size = header.size if has_data else 0
        if has_data and "size" in extended:
            size = self._number(extended["size"])
        member = Member(name, self.at, size, header.isreg() and not sparse, header.isdir())
        if self.at + size > self.end:
            raise self._cut(repr(name))
        self.at += _blocks(size)
        return member

    def _number(self, text: bytes) -> int:
        if not (text.isdigit() and len(text) < 20):
            raise self.damaged(f"a size of {text[:20]!r} before byte {self.at}")
        return int(text)

    def _refuse_global(self, records: dict[str, bytes]) -> None:
        """A global header may hold comments (git archive's does); names and sizes for all are refused."""
        if records:
            raise self.damaged(f"{min(records)!r} for all members at once before byte {self.at}")

    def _check_end(self) -> None:
        """After its last member a tar holds zeros only: anything else would be lost in silence."""
        self.stream.seek(self.at)
        while block := self.stream.read(_CHUNK):
            if block.count(0) != len(block):
                raise self.damaged(f"unreadable data after byte {self.at}")

    def _read(self, size: int) -> bytes:
        self.stream.seek(self.at)
        return self.stream.read(size)

    def _cut(self, within: str) -> SampleError:
        return SampleError(self.where, "truncated", f"it ends inside {within}; copy it again")

    def damaged(self, what: str) -> SampleError:
        return SampleError(self.where, "damaged", f"{what}; copy it again, or pack it again")


def _pax_records(data: bytes, walk: _Walk) -> dict[str, bytes]:
    """Records ``<length> <key>=<value>\\n``, one after the other; zeros may fill the rest. Those of use
    are kept: path, size, and whether the member is sparse."""
    records: dict[str, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, space, _ = data[at : at + 8].partition(b" ")
        length = int(digits) if space and digits.isdigit() else 0
        record = data[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not (equals and key and len(record) == length and record.endswith(b"\n")):
            raise walk.damaged(f"a malformed header before byte {walk.at}")
        if key in _USED or key.startswith(_SPARSE):
            records[key.decode() if key in _USED else "sparse"] = value
        at += length
    return records


def _blocks(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK

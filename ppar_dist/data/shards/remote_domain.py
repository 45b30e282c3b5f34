"""A domain on object storage: its index as files of the node, its shards read by ranges."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ppar_dist.data.shards.manifest import ARRAYS, NAME, REMEDY, Shard, read_domain_file
from ppar_dist.data.shards.reader import Member, Span
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.errors import DataError
from ppar_dist.files.durable import fingerprint, sync_folder, write
from ppar_dist.storage.entries import hold
from ppar_dist.storage.location import Remote
from ppar_dist.storage.node import NodeStorage
from ppar_dist.storage.remote import Facts
from ppar_dist.storage.unit_file import Unit

_LISTED = ("s3", "gs")  # storage that lists what lies below a prefix
_THREADS = 16
_ASKED = 256  # shards whose size is asked one by one, where storage lists nothing


def fetch_index(domain: Remote, node: NodeStorage) -> Path:
    """The folder of the node that holds a domain's ``domain.json`` and arrays, as they are on storage now.

    Raises:
        DataError: there is no index, or a file of it is not what its ``domain.json`` says.
        StorageDenied, StorageUnavailable: as of ``Storage``.
    """
    try:
        content = node.storage.read(domain / NAME)
    except FileNotFoundError:
        raise DataError(
            f"{domain} has no {NAME}, so it is not indexed; {REMEDY}, and copy it whole"
        ) from None
    digest = hashlib.sha256(content).hexdigest()
    entry = node.folder / "domains" / digest[:24]
    folder = entry / domain.name
    with node.alone(entry.name):
        folder.mkdir(parents=True, exist_ok=True)
        hold(entry)
        is_there = _is_whole(folder, content)
        if not is_there:
            _fetch_files(domain, content, folder, node)
    if not is_there:
        node.clear()
    return folder


def _is_whole(folder: Path, content: bytes) -> bool:
    """Whether an index was fetched: its ``domain.json`` came last, when all else had been synced.

    What clears temporary folders may have taken single files since.
    """
    try:
        return (folder / NAME).read_bytes() == content and all((folder / name).is_file() for name in ARRAYS)
    except FileNotFoundError:
        return False


def _fetch_files(domain: Remote, content: bytes, folder: Path, node: NodeStorage) -> None:
    draft = folder / f".{NAME}"
    write(draft, content)
    hashes = read_domain_file(folder, draft.name).arrays
    for name in ARRAYS:
        try:
            node.download(domain / name, folder / name)
        except FileNotFoundError:
            raise DataError(f"{domain / name} is missing; {REMEDY}, and copy it whole") from None
        if name in hashes and fingerprint(folder / name)[1] != hashes[name]:
            raise DataError(f"{domain / name} is not the one of its {NAME} (sha256); copy the domain again")
    # Last: with it the folder counts. A power cut must not keep this name and lose those of the arrays, which
    # are synced as they are downloaded. That it loses this one does no harm.
    sync_folder(folder)
    draft.rename(folder / NAME)


class RemoteShards:
    """The shards of a domain on object storage, read through the cache of the node."""

    def __init__(self, domain: Remote, digest: str, shards: Sequence[Shard], node: NodeStorage) -> None:
        self.domain, self.digest, self.node = domain, digest, node
        self.shards = tuple(shards)
        self.cache = node.cache
        self._listed: dict[str, Facts] | None = None  # as each was when the domain was opened

    def sizes_now(self) -> Iterator[int | None]:
        """Bytes of each shard's object; None where there is none."""
        names = [shard.name for shard in self.shards]
        if self.domain.scheme in _LISTED:  # a request for a thousand of them
            entries = self.node.storage.entries(self.domain)
            self._listed = {
                each.name: Facts(each.bytes, each.version) for each in entries if not each.is_folder
            }
            yield from (self._listed[name].bytes if name in self._listed else None for name in names)
            return
        with ThreadPoolExecutor(_THREADS) as pool:
            yield from pool.map(self._size_now, names[:_ASKED])
        yield from (shard.bytes for shard in self.shards[_ASKED:])  # what is wrong shows when they are read

    def _size_now(self, name: str) -> int | None:
        try:
            return self.node.storage.facts(self.domain / name).bytes
        except FileNotFoundError:
            return None

    def unit(self, number: int, span: Span) -> Unit:
        """What the cache calls a span."""
        return Unit(self.digest, number, span.start, span.stop)

    def fetch(self, number: int, span: Span) -> None:
        """Have the node hold a span; raises what reading it would."""
        unit = self.unit(number, span)
        if span.stop <= self.shards[number].bytes and not self.cache.has(unit):
            self.cache.read(unit, 0, 0, lambda: self._fetched(number, span), bytes)

    def read(self, member: Member, span: Callable[[], Span] | None = None) -> bytes:
        """The bytes of a member; with them the ``span`` is fetched.

        Raises:
            SampleError: the shard is missing, truncated or changed, or the checksum is another.
            StorageDenied, StorageUnavailable: as of ``Storage``.
        """
        number, alone = member.shard, Span(member.offset, member.offset + member.size)
        part = alone if span is None else span()
        if not part.start <= alone.start <= alone.stop <= part.stop <= self.shards[number].bytes:
            part = alone  # records around this one are damaged
        unit = self.unit(number, part)
        for _ in range(2):
            try:
                raw = self.cache.read(
                    unit,
                    member.offset - part.start,
                    member.size,
                    lambda: self._fetched(number, part),
                    lambda: self._fetched(number, alone),
                )
            except FileNotFoundError:
                raise SampleError(member.where, "shard_missing", "no such object; bring it back") from None
            if member.has(raw):
                return raw
            self.cache.drop(unit)  # damaged on the node, or on its way: storage answers once more
        raise self._what_happened(member, member.size - len(raw))

    def _fetched(self, number: int, span: Span) -> bytes:
        return self.node.storage.read_range(self.domain / self.shards[number].name, span.start, span.stop)

    def _what_happened(self, member: Member, short: int) -> SampleError:
        number, where = member.shard, member.where
        try:
            now = self.node.storage.facts(self.domain / self.shards[number].name)
        except FileNotFoundError:
            return SampleError(where, "shard_missing", "no such object; bring it back")
        indexed, before = self.shards[number].bytes, self._listed or {}
        if now != before.get(self.shards[number].name, now):
            detail = "the object was replaced while in use (its ETag is another); index it again"
            return SampleError(where, "shard_changed", detail)
        if short:
            return SampleError(where, "truncated", f"the object ends {short} bytes early; copy it again")
        if now.bytes != indexed:
            detail = f"the object has {now.bytes} bytes, its index says {indexed}; copy or index it again"
            return SampleError(where, "shard_changed", detail)
        detail = f"the {member.kind} is not what was indexed (CRC-32 differs); copy or index the shard again"
        return SampleError(where, "checksum", detail)

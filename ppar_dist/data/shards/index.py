"""The index of a domain: where each sample is in its shards, so that any sample is one ``pread`` away.

::

    <domain>/domain.json         version, class set, shards with bytes and sha256 (written last)
    <domain>/index.npy           (N,) records: shard, offsets, sizes and checksums of the members, label size
    <domain>/counts.npy          (N, K) pixels per train id (255 is not counted)
    <domain>/keys.npy            (N,) sample keys, UTF-8
    <domain>/quarantine.jsonl    samples that were left out when the index was made, if any
    <domain>/shard-000000.tar …  adjacent members <key>.jpg, <key>.png, <key>.json (optional)

The arrays are memory-mapped: of the samples nothing is read when a domain is opened. So a record is
checked when it is read, and what is read is held to its checksum. ``index_folder`` makes an index.
"""

from __future__ import annotations

import json
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.manifest import REMEDY, read_domain_file
from ppar_dist.data.shards.reader import Member, ShardReader, Shards, Span
from ppar_dist.data.shards.remote_domain import RemoteShards, fetch_index
from ppar_dist.data.shards.sample import RawSample, SampleError, check_member
from ppar_dist.errors import DataError
from ppar_dist.storage.location import Location, Remote, location
from ppar_dist.storage.node import NodeStorage
from ppar_dist.text import one_line, printable

RECORD = np.dtype(
    [
        ("shard", "<u4"),
        ("image_offset", "<u8"),
        ("image_size", "<u8"),
        ("label_offset", "<u8"),
        ("label_size", "<u8"),
        ("json_offset", "<u8"),
        ("json_size", "<u8"),  # 0: the sample has none
        ("height", "<u4"),
        ("width", "<u4"),
        ("image_crc", "<u4"),  # CRC-32 of the member
        ("label_crc", "<u4"),
    ]
)
_KINDS = ("image", "label", "json")
_STRETCH = 1 << 16  # samples looked at together
_NAMED = 5  # shards that a message names

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DomainIndex:
    """A domain folder, opened: N samples of K classes. Immutable but for its open files."""

    name: str
    path: Location
    class_set: str
    classes: tuple[str, ...]
    shards: tuple[str, ...]
    num_samples: int
    records: npt.NDArray[Any]  # (N,) RECORD
    counts: npt.NDArray[np.uint32]  # (N, K)
    keys: npt.NDArray[np.bytes_]  # (N,)
    fingerprint: str  # changes whenever shards, their order or the class set change
    folder: Path  # where its index is read: the path, or a copy on this node
    reader: Shards = field(repr=False, compare=False)
    node: NodeStorage = field(default_factory=NodeStorage, repr=False, compare=False)
    encoded_again: str = ""  # how `prepare` changed the images; "" where they are as they came, or unknown

    @classmethod
    def open(
        cls, path: Location | str, max_missing_ratio: float | None = None, node: NodeStorage | None = None
    ) -> DomainIndex:
        """Open a domain folder, or a domain on object storage.

        Args:
            path: the folder, or its URL.
            max_missing_ratio: share of samples that may be in missing shards, or beyond the end of
                shortened ones: such shards are warnings, and their samples fail when they are read.
                None: every shard is there and has the size it had when it was indexed.
            node: what this node does with object storage; None: the usual.

        Raises:
            DataError: folder or index missing or damaged, another version, shards missing or changed.
            StorageDenied, StorageUnavailable: of object storage that refuses, or does not answer.
        """
        node = NodeStorage() if node is None else node
        place = location(path)
        index = cls._map(fetch_index(place, node) if isinstance(place, Remote) else place, place, node)
        if max_missing_ratio is None:
            index._refuse_changes()
        else:
            index._weigh_losses(max_missing_ratio)
        return index

    @classmethod
    def _map(cls, path: Path, place: Location, node: NodeStorage) -> DomainIndex:
        """Open the index in the folder ``path`` and look at no shard, all of which are at ``place``."""
        meta = read_domain_file(path)
        arrays = {name: _map_array(path / f"{name}.npy") for name in ("index", "counts", "keys")}
        n, k = meta.num_samples, len(meta.classes)
        fits = arrays["index"].dtype == RECORD and arrays["keys"].dtype.kind == "S"
        if not fits or {arrays["index"].shape, arrays["keys"].shape, arrays["counts"].shape[:1]} != {(n,)}:
            raise DataError(f"{path}: the index does not belong to its domain.json; {REMEDY}")
        if arrays["counts"].shape != (n, k) or arrays["counts"].dtype != np.uint32:
            raise DataError(f"{path}: counts.npy is not {n} samples by {k} classes; {REMEDY}")
        reader: Shards = ShardReader(path, meta.shards)
        if isinstance(place, Remote):
            reader = RemoteShards(place, meta.fingerprint(), meta.shards, node)
        return cls(
            name=meta.name,
            path=place,
            folder=path,
            node=node,
            class_set=meta.class_set,
            classes=tuple(meta.classes),
            shards=tuple(shard.name for shard in meta.shards),
            num_samples=n,
            records=arrays["index"],
            counts=arrays["counts"],
            keys=arrays["keys"],
            fingerprint=meta.fingerprint(),
            reader=reader,
            encoded_again=meta.encoded_again(),
        )

    def __len__(self) -> int:
        return self.num_samples

    def __reduce__(self) -> tuple[Callable[..., DomainIndex], tuple[Path, Location, NodeStorage]]:
        # Workers map the files again instead of copying them, and ask storage for none.
        return DomainIndex._map, (self.folder, self.path, self.node)

    def stretches(self, most: int | None = None) -> list[slice]:
        """Samples in stretches that fit into memory: all, or ``most`` evenly spread over the domain."""
        starts = range(0, self.num_samples, _STRETCH)
        if most is not None and most < self.num_samples:
            count = max(most // _STRETCH, 1)
            starts = starts[:: -(-len(starts) // count)]
        return [slice(start, min(start + _STRETCH, self.num_samples)) for start in starts]

    def key(self, sample: int) -> str:
        """The key of a sample, unique within the domain.

        Raises:
            SampleError: keys.npy is damaged there.
        """
        try:
            return bytes(self.keys[sample]).decode("utf-8")
        except UnicodeDecodeError:
            raise SampleError(
                self.name, "index", f"the key of sample {sample} in keys.npy is not UTF-8; {REMEDY}"
            ) from None

    def names(self, sample: int) -> tuple[str, str]:
        """Shard and key of a sample as a message shows them, whatever state the index is in."""
        shard = int(self.records[sample]["shard"])
        key = printable(bytes(self.keys[sample]).decode("utf-8", "backslashreplace"))
        return self.shards[shard] if shard < len(self.shards) else f"shard number {shard}", key

    def read(self, sample: int) -> RawSample:
        """The undecoded members of a sample, read at their offsets.

        Raises:
            SampleError: the shard is missing, ends before the member does or has changed, or the bytes are
                not those that were indexed.
        """
        key, where = self.key(sample), self._where(sample)
        image, label = (self._member(sample, kind, where) for kind in ("image", "label"))
        return RawSample(where=where, key=key, image=image, label=label)

    def metadata(self, sample: int) -> dict[str, Any]:
        """The sample's JSON member, {} where it has none; raises SampleError when it is not a JSON object."""
        if not self.records[sample]["json_size"]:
            return {}
        where = self._where(sample)
        raw = self._member(sample, "json", where)
        try:
            value = json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise SampleError(where, "json", f"the .json member is not valid JSON ({error})") from None
        if not isinstance(value, dict):
            raise SampleError(where, "json", "the .json member is not an object")
        return value

    def _where(self, sample: int) -> str:
        shard, key = self.names(sample)
        return f"{self.name}/{shard} sample {key}"

    def _member(self, sample: int, kind: str, where: str) -> bytes:
        record = self.records[sample]
        shard, offset, size = (int(record[name]) for name in ("shard", f"{kind}_offset", f"{kind}_size"))
        if shard >= len(self.shards) or offset + size > self.reader.shards[shard].bytes:
            raise SampleError(where, "index", f"index.npy points outside its shards; {REMEDY}")
        check_member(kind, size, where)
        crc = None if kind == "json" else int(record[f"{kind}_crc"])
        return self.reader.read(Member(shard, offset, size, crc, where, kind), lambda: self.span(sample))

    def place(self, sample: int) -> tuple[int, Span]:
        """The number of a sample's shard, and the bytes of it that are fetched together with the sample."""
        return int(self.records[sample]["shard"]), self.span(sample)

    def is_sound(self, sample: int) -> bool:
        """Whether a record points into its shards."""
        record = self.records[sample]
        shard = int(record["shard"])
        ends = (int(record[f"{kind}_offset"]) + int(record[f"{kind}_size"]) for kind in _KINDS)
        there = record["image_size"] > 0 and record["label_size"] > 0
        return bool(there) and shard < len(self.shards) and max(ends) <= self.reader.shards[shard].bytes

    def span(self, sample: int) -> Span:
        """The bytes of a sample's shard fetched together: of it and of those around it."""
        first = sample - sample % self.node.together
        around = self.records[first : first + self.node.together]
        around = around[around["shard"] == self.records[sample]["shard"]]
        span, members = _span(around)
        # Members that lie far apart, as others may write them, would be fetched with all that is between.
        is_dense = span.stop - span.start <= 2 * members + 4096 * len(around)
        return span if is_dense else _span(self.records[sample : sample + 1])[0]

    def _refuse_changes(self) -> None:
        for shard, found in zip(self.reader.shards, self.reader.sizes_now(), strict=True):
            if found is None:
                raise DataError(f"shard {self.path / shard.name} is missing; {REMEDY}")
            if found != shard.bytes:
                path = self.path / shard.name
                raise DataError(f"shard {path} has {found} bytes, its index says {shard.bytes}; {REMEDY}")

    def _weigh_losses(self, max_missing_ratio: float) -> None:
        """Warn of missing and shortened shards; refuse when too many samples went with them."""
        problems, lost = [], 0
        for number, found in enumerate(self.reader.sizes_now()):
            shard = self.reader.shards[number]
            if found is None:
                problems.append(f"{shard.name} is missing")
                lost += shard.samples
            elif found != shard.bytes:
                problems.append(f"{shard.name} has {found} bytes instead of {shard.bytes}")
                lost += self._beyond(number, found)
        if not problems:
            return
        text = f"domain {self.name}: {_listed(problems)} in {self.path}"
        if lost > max_missing_ratio * self.num_samples:
            raise DataError(
                f"{text}: {lost} of {self.num_samples} samples lost, more than "
                f"data.max_bad_ratio={max_missing_ratio:g}; bring the shards back, or index the folder again"
            )
        log.warning(
            "%s: %d of %d samples lost; training replaces them, evaluation leaves them out",
            text,
            lost,
            self.num_samples,
        )

    def _beyond(self, shard: int, size: int) -> int:
        """Samples of a shard that a file of ``size`` bytes cannot hold."""
        numbers = self.records["shard"]  # in order, so that few are looked at
        first, last = bisect_left(numbers, shard), bisect_right(numbers, shard)
        records = self.records[first:last]
        ends = [records[f"{kind}_offset"] + records[f"{kind}_size"] for kind in ("image", "label")]
        return int(np.count_nonzero(np.maximum(*ends) > size))


def _span(records: npt.NDArray[Any]) -> tuple[Span, int]:
    """From the first to the last byte of all members, and how many bytes are theirs."""
    offsets = np.stack([records[f"{kind}_offset"] for kind in _KINDS])
    sizes = np.stack([records[f"{kind}_size"] for kind in _KINDS])
    there = sizes > 0  # a sample may have no .json
    return Span(int(offsets[there].min()), int((offsets + sizes)[there].max())), int(sizes.sum())


def _listed(problems: Sequence[str]) -> str:
    rest = len(problems) - _NAMED
    return ", ".join(problems[:_NAMED]) + (f" and {rest} more shards like that" if rest > 0 else "")


def _map_array(path: Path) -> npt.NDArray[Any]:
    try:
        return np.lib.format.open_memmap(path, mode="r", max_header_size=10_000)
    except Exception as error:  # numpy parses the header as Python source, which fails in many ways
        raise DataError(f"cannot read {path} ({one_line(error)}); {REMEDY}") from None

"""Writing the arrays of an index, and finding keys that occur twice: both in memory that does not grow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.index import RECORD

_HELD = 1 << 20  # keys whose digests are held before they go to files
_BUCKETS = 256
_DIGEST = np.dtype([("high", "<u8"), ("low", "<u8"), ("row", "<u8")])


class ArrayWriter:
    """Writes index.npy, counts.npy and keys.npy of N samples piece by piece, as ``np.save`` does at once.

    Args:
        folder: where they are written.
        samples: N.
        num_classes: K.
        key_width: bytes of the longest key.
    """

    def __init__(self, folder: Path, samples: int, num_classes: int, key_width: int) -> None:
        self._keys = np.dtype(f"S{max(key_width, 1)}")
        self._streams = [
            _begin(folder / "index.npy", RECORD, (samples,)),
            _begin(folder / "counts.npy", np.dtype(np.uint32), (samples, num_classes)),
            _begin(folder / "keys.npy", self._keys, (samples,)),
        ]

    def add(
        self, records: npt.NDArray[Any], counts: npt.NDArray[np.uint32], keys: npt.NDArray[np.bytes_]
    ) -> None:
        """Append samples."""
        for stream, array in zip(self._streams, (records, counts, keys.astype(self._keys)), strict=True):
            stream.write(np.ascontiguousarray(array).tobytes())

    def close(self) -> None:
        """End the files."""
        for stream in self._streams:
            stream.close()


def _begin(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> BinaryIO:
    stream = path.open("wb")
    described = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, described)
    return stream


class RepeatedKeys:
    """Finds the keys that an earlier sample had: digests of 128 bits, sorted in parts that fit into memory.

    Args:
        folder: for files, once there are more than a million keys.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._held: list[npt.NDArray[Any]] = []
        self._count, self._written = 0, 0
        self._buckets: list[BinaryIO] = []

    def add(self, keys: npt.NDArray[np.bytes_]) -> None:
        """The keys of further samples, in their order."""
        digests = b"".join(hashlib.blake2b(key, digest_size=16).digest() for key in keys.tolist())
        marks = np.empty(len(keys), _DIGEST)
        words = np.frombuffer(digests, "<u8").reshape(-1, 2)
        marks["high"], marks["low"] = words[:, 0], words[:, 1]
        marks["row"] = np.arange(self._count, self._count + len(keys))
        self._held.append(marks)
        self._count += len(keys)
        if self._count - self._written > _HELD:
            self._spill()

    def find(self) -> npt.NDArray[np.uint64]:
        """Numbers of the samples whose key an earlier one has, sorted."""
        found = [_repeats(part) for part in self._parts()]
        return np.sort(np.concatenate(found))

    def _parts(self) -> Iterator[npt.NDArray[Any]]:
        if not self._buckets:
            yield np.concatenate([np.empty(0, _DIGEST), *self._held])
            return
        self._spill()
        for stream in self._buckets:
            stream.close()
            path = Path(stream.name)
            yield np.fromfile(path, _DIGEST)
            path.unlink()

    def _spill(self) -> None:
        if not self._buckets:
            self._buckets = [(self._folder / f"keys-{n:03d}").open("wb") for n in range(_BUCKETS)]
        marks = np.concatenate([np.empty(0, _DIGEST), *self._held])
        self._held, self._written = [], self._count
        bucket = (marks["high"] >> np.uint64(56)).astype(np.uint8)
        marks = marks[np.argsort(bucket, kind="stable")]
        ends = np.cumsum(np.bincount(bucket, minlength=_BUCKETS))
        for stream, part in zip(self._buckets, np.split(marks, ends[:-1]), strict=True):
            stream.write(part.tobytes())


def _repeats(marks: npt.NDArray[Any]) -> npt.NDArray[np.uint64]:
    marks = marks[np.lexsort((marks["row"], marks["low"], marks["high"]))]
    same = (marks["high"][1:] == marks["high"][:-1]) & (marks["low"][1:] == marks["low"][:-1])
    rows: npt.NDArray[np.uint64] = marks["row"][1:][same]
    return rows

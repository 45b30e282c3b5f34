"""The rows that one shard, or one piece of a domain, adds to an index; a file each while a domain is made.

A file is believed only with its checksum: what a kill left is found by that, and made again.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.data.shards.check import CheckedSample
from ppar_dist.data.shards.index import RECORD

SEGMENT = np.dtype([("end", "<u8"), ("crc", "<u4"), ("size", "<u8")])
"""Of a sample in a piece: where its members end, the CRC-32 of their bytes, and the sum of their sizes."""
_MAGIC = b"PPARROW1"
_HEAD = struct.Struct("<8sIII")  # magic, bytes of the header, its CRC-32, and that of the arrays
_KIND = {"records": RECORD, "turned": np.dtype("u1"), "segments": SEGMENT}


@dataclass(frozen=True)
class Rows:
    """N samples of K classes in their order; ``header`` says of what they are.

    Attributes:
        header: what was worked on, what was found besides, and what it was asked for.
        records: (N,) RECORD.
        counts: (N, K) pixels per train id.
        keys: (N,) UTF-8.
        turned: (N,) whether an image is turned by its EXIF orientation.
        segments: (N,) SEGMENT of a piece, (0,) of a shard.
    """

    header: dict[str, Any]
    records: npt.NDArray[Any]
    counts: npt.NDArray[np.uint32]
    keys: npt.NDArray[np.bytes_]
    turned: npt.NDArray[np.uint8]
    segments: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.records)

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        arrays = [np.ascontiguousarray(getattr(self, name)) for name in _NAMES]
        shapes = {name: [a.dtype.itemsize, *a.shape] for name, a in zip(_NAMES, arrays, strict=True)}
        payload = b"".join(array.tobytes() for array in arrays)
        header = json.dumps(self.header | {"arrays": shapes}).encode("ascii")
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        head = _HEAD.pack(_MAGIC, len(header), zlib.crc32(header), zlib.crc32(payload))
        temporary.write_bytes(head + header + payload)
        os.replace(temporary, path)


_NAMES = ("records", "counts", "keys", "turned", "segments")


def load(path: Path) -> Rows | None:
    """The rows of a file; None where there is none that is whole."""
    try:
        raw = path.read_bytes()
        magic, length, header_crc, crc = _HEAD.unpack_from(raw)
    except (OSError, struct.error):
        return None
    header, payload = raw[_HEAD.size : _HEAD.size + length], raw[_HEAD.size + length :]
    if magic != _MAGIC or zlib.crc32(header) != header_crc or zlib.crc32(payload) != crc:
        return None
    tree, arrays, at = json.loads(header), {}, 0
    for name in _NAMES:
        width, *shape = tree["arrays"][name]
        dtype = _KIND.get(name, np.dtype(np.uint32 if name == "counts" else f"S{width}"))
        count = int(np.prod(shape))
        arrays[name] = np.frombuffer(payload, dtype, count, at).reshape(shape)
        at += count * width
    return Rows({name: value for name, value in tree.items() if name != "arrays"}, **arrays)


def rows_of(
    samples: list[CheckedSample], header: dict[str, Any], num_classes: int, segments: npt.NDArray[Any]
) -> Rows:
    """The rows of checked samples; ``shard`` is 0 in their records."""
    records = [
        (0, *each.image, *each.label, *each.json, each.height, each.width, each.image_crc, each.label_crc)
        for each in samples
    ]
    return Rows(
        header,
        np.array(records, dtype=RECORD),
        np.array([each.counts for each in samples], np.uint32).reshape(len(samples), num_classes),
        np.array([each.key.encode("utf-8") for each in samples], dtype=np.bytes_),
        np.array([each.turned for each in samples], np.uint8),
        segments,
    )

"""Scan a tar shard for samples: where each member lies, read from the headers alone.

Shards may come from anybody: member names are compared, never opened as paths, and a tar that ends
early is refused rather than read as far as it goes.
"""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from ppar_dist.data.samples import DataError, check_sizes, class_counts, decode_label, open_image

_KINDS = {"jpg": "image", "jpeg": "image", "png": "label", "json": "json"}
_CHUNK = 1 << 20

Span = tuple[int, int]  # offset and size in bytes


class ScannedSample(NamedTuple):
    """One sample of a shard; its image and label agree in size and its label ids are legal."""

    key: str
    image: Span
    label: Span
    json: Span  # (0, 0) where there is none
    height: int
    width: int
    counts: npt.NDArray[np.uint32]  # (K,) pixels per train id


def scan_shard(path: Path, num_classes: int, where: str) -> Iterator[ScannedSample]:
    """The samples of one shard in their order; every label is decoded and checked.

    Raises:
        DataError: the shard is cut off, a sample lacks a member, or a sample is bad; the message
            begins with ``where`` and names the key.
    """
    with path.open("rb") as stream:
        for key, members in _samples(path, where):
            here = f"{where} sample {key}"
            for kind in ("image", "label"):
                if kind not in members:
                    raise DataError(
                        here, "incomplete", f"no {kind} member; store <key>.jpg and <key>.png side by side"
                    )
            label = decode_label(_read(stream, members["label"]), here)
            width, height = open_image(_read(stream, members["image"]), here).size
            check_sizes((height, width), (label.shape[0], label.shape[1]), here)
            yield ScannedSample(
                key,
                members["image"],
                members["label"],
                members.get("json", (0, 0)),
                height,
                width,
                class_counts(label, num_classes, here),
            )


def _samples(path: Path, where: str) -> Iterator[tuple[str, dict[str, Span]]]:
    """Group adjacent members by key, as WebDataset does."""
    current = ""
    members: dict[str, Span] = {}
    for key, kind, span in _members(path, where):
        if key != current and members:
            yield current, members
            members = {}
        current = key
        if kind in members:
            raise DataError(f"{where} sample {key}", "repeated", f"two {kind} members; keep one")
        members[kind] = span
    if members:
        yield current, members


def _members(path: Path, where: str) -> Iterator[tuple[str, str, Span]]:
    end = path.stat().st_size
    try:
        with tarfile.open(path, mode="r:") as archive:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # or tarfile keeps every header in memory
                stem, _, extension = os.path.basename(member.name).partition(".")
                kind = _KINDS.get(extension.lower())
                if kind is None or member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(where, "member", f"{member.name!r} is no plain file; store plain files")
                if member.offset_data + member.size > end:
                    raise DataError(where, "truncated", f"it ends inside {member.name!r}; copy it again")
                yield (
                    os.path.join(os.path.dirname(member.name), stem),
                    kind,
                    (member.offset_data, member.size),
                )
            marker = archive.offset  # type: ignore[attr-defined]
    except tarfile.TarError as error:
        raise DataError(where, "truncated", f"no whole, uncompressed tar ({error}); copy it again") from None
    _check_end(path, marker, where)


def _check_end(path: Path, marker: int, where: str) -> None:
    """After its last member a tar holds zeros only; tarfile stops in silence at anything else."""
    with path.open("rb") as stream:
        stream.seek(marker)
        block = stream.read(_CHUNK)
        if len(block) < tarfile.BLOCKSIZE:
            raise DataError(
                where, "truncated", f"it ends at byte {marker} without an end mark; copy it again"
            )
        while block:
            if block.count(0) != len(block):
                raise DataError(
                    where, "damaged", f"unreadable data after byte {marker}; copy it again, or pack it anew"
                )
            block = stream.read(_CHUNK)


def _read(stream: BinaryIO, span: Span) -> bytes:
    stream.seek(span[0])
    return stream.read(span[1])

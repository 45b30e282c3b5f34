"""A domain made of its pieces: shards cut as one process would cut them, and their index."""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare.pieces import Piece
from ppar_dist.data.shards.arrays import ArrayWriter
from ppar_dist.data.shards.build_index import publish
from ppar_dist.data.shards.findings import Findings
from ppar_dist.data.shards.manifest import Prepared
from ppar_dist.data.shards.rows import Rows, load
from ppar_dist.data.shards.writer import SAMPLES_PER_SHARD, SHARD_BYTES, SHARD_NAME
from ppar_dist.errors import DataError
from ppar_dist.files.durable import fingerprint
from ppar_dist.processes.pool import Pool


class Slice(NamedTuple):
    """Samples [first, last) of a piece, whose files have this stem."""

    stem: Path
    first: int
    last: int


@dataclass(frozen=True)
class Shard:
    """A shard to be written."""

    path: Path
    note: Path  # where its size and sha256 stand once it is whole
    slices: tuple[Slice, ...]


def assemble(pieces: Sequence[Piece], kept: Path, prepared: Prepared, processes: int) -> tuple[Path, bool]:
    """Write the shards of a domain and their index; returns its folder and whether any pixel has a class."""
    setting, folder = pieces[0].setting, kept / "domain"
    classes = class_set(setting.classes)
    folder.mkdir(exist_ok=True)
    shards = [
        Shard(folder / (SHARD_NAME % number), kept / f"{SHARD_NAME % number}.json", slices)
        for number, slices in enumerate(_cut(pieces))
    ]
    _remove_others(folder, shards)
    with Pool(write_shard, max(min(processes, len(shards)), 1)) as pool:
        listed = list(pool.in_order(shards))
    findings = Findings(setting.domain)
    any_class = _write_arrays(shards, kept, classes.num_classes, findings)
    publish(kept, folder, classes, findings, listed, prepared)
    return folder, any_class


def _cut(pieces: Sequence[Piece]) -> Iterator[tuple[Slice, ...]]:
    """The slices of each shard: a shard ends when it has enough samples, or bytes of members."""
    slices: list[Slice] = []
    count, size = 0, 0
    for piece in pieces:
        first = 0
        sizes = _rows(piece.stem).segments["size"].tolist()
        for number, each in enumerate(sizes):
            if count >= SAMPLES_PER_SHARD or size >= SHARD_BYTES:
                yield (*slices, *[Slice(piece.stem, first, number)] * (number > first))
                slices, first, count, size = [], number, 0, 0
            count, size = count + 1, size + each
        if len(sizes) > first:
            slices.append(Slice(piece.stem, first, len(sizes)))
    if slices:
        yield tuple(slices)


def write_shard(shard: Shard) -> dict[str, Any]:
    """Write a shard unless it is there; returns what the domain's file says of it."""
    wanted = [[each.stem.name, each.first, each.last, _crcs(each)] for each in shard.slices]
    plan = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    try:
        note = json.loads(shard.note.read_bytes())
        if note["plan"] == plan and fingerprint(shard.path) == (note["of"]["bytes"], note["of"]["sha256"]):
            known: dict[str, Any] = note["of"]
            return known
    except (OSError, ValueError, KeyError):
        pass  # not there, or not whole: it is written
    described = _write(shard)
    draft = shard.note.with_suffix(f".{os.getpid()}")
    draft.write_text(json.dumps({"plan": plan, "of": described}), "ascii")
    os.replace(draft, shard.note)
    return described


def _crcs(part: Slice) -> list[int]:
    found: list[int] = _rows(part.stem).segments["crc"][part.first : part.last].tolist()
    return found


def _write(shard: Shard) -> dict[str, Any]:
    digest, size, samples = hashlib.sha256(), 0, 0
    draft = shard.note.with_suffix(f".tar.{os.getpid()}")
    with draft.open("wb") as target:
        for raw in _segments(shard):
            target.write(raw)
            digest.update(raw)
            size, samples = size + len(raw), samples + 1
        end = bytes(2 * tarfile.BLOCKSIZE)  # of every tar, whose size is a multiple of a record's
        end += bytes(-(size + len(end)) % tarfile.RECORDSIZE)
        target.write(end)
        digest.update(end)
    os.replace(draft, shard.path)
    return {
        "name": shard.path.name,
        "samples": samples,
        "bytes": size + len(end),
        "sha256": digest.hexdigest(),
    }


def _segments(shard: Shard) -> Iterator[bytes]:
    """The bytes of each sample of a shard, held to their checksums."""
    for stem, first, last in shard.slices:
        ends = _rows(stem).segments
        with stem.with_suffix(".tar").open("rb") as source:
            start = int(ends["end"][first - 1]) if first else 0
            source.seek(start)
            for end, crc, _ in ends[first:last].tolist():
                raw = source.read(end - start)
                if len(raw) != end - start or zlib.crc32(raw) != crc:
                    raise DataError(f"{source.name} is not as it was made; run `ppar-dist prepare` again")
                yield raw
                start = end


def _write_arrays(shards: Sequence[Shard], kept: Path, num_classes: int, findings: Findings) -> bool:
    """Write the arrays of the index; returns whether any pixel has a class."""
    total, width = 0, 1
    for shard in shards:
        for part in shard.slices:
            total += part.last - part.first
            width = max(width, _rows(part.stem).keys.dtype.itemsize)
    arrays, any_class = ArrayWriter(kept, total, num_classes, width), False
    for number, shard in enumerate(shards):
        at = 0  # bytes of the shard before the slice
        for stem, first, last in shard.slices:
            rows = _rows(stem)
            start = int(rows.segments["end"][first - 1]) if first else 0
            arrays.add(_placed(rows.records[first:last], number, at - start), *_of(rows, first, last))
            at += int(rows.segments["end"][last - 1]) - start
            findings.turned += int(rows.turned[first:last].sum())
            any_class = any_class or bool(rows.counts[first:last].any())
    arrays.close()
    findings.good = total
    return any_class


def _of(rows: Rows, first: int, last: int) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.bytes_]]:
    return rows.counts[first:last], rows.keys[first:last]


def _placed(records: npt.NDArray[Any], shard: int, moved: int) -> npt.NDArray[Any]:
    records = records.copy()
    records["shard"] = shard
    for kind in ("image", "label", "json"):
        records[f"{kind}_offset"] = (records[f"{kind}_offset"].astype(np.int64) + moved).astype(np.uint64)
    return records


def _rows(stem: Path) -> Rows:
    rows = load(stem.with_suffix(".rows"))
    if rows is None:
        raise DataError(f"{stem}.rows was changed while it was in use; run `ppar-dist prepare` again")
    return rows


def _remove_others(folder: Path, shards: Sequence[Shard]) -> None:
    """A killed process with other options may have left shards that are not part of this domain."""
    wanted = {shard.path for shard in shards}
    for path in folder.iterdir():
        if path not in wanted:
            path.unlink()

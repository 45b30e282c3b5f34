"""A piece of a domain, a few pairs that one process checks, encodes and indexes: a small tar and its rows.

Which pairs are in a piece depends on the data set alone, and what is in its files on the pairs alone. So
pieces may be made by any process, on any machine, in any order, and again after a kill.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ppar_dist.class_sets import class_set
from ppar_dist.data.prepare.checking import ENCODED, BadPair, PairCheck
from ppar_dist.data.prepare.encoding import Encoder
from ppar_dist.data.prepare.known import find_source
from ppar_dist.data.prepare.options import Options
from ppar_dist.data.prepare.source import Pair
from ppar_dist.data.shards.check import CheckedSample, Fault, check_shard
from ppar_dist.data.shards.findings import BadSamples, Findings
from ppar_dist.data.shards.rows import SEGMENT, Rows, load, rows_of
from ppar_dist.data.shards.writer import ShardSample, members

PAIRS = 64  # of a piece
_FORM = 1  # of pieces; raise it when what they hold changes


class Marked(NamedTuple):
    """A pair, and what its name alone makes wrong with it."""

    pair: Pair
    bad: BadPair | None


@dataclass(frozen=True)
class Setting:
    """How the pairs of a domain are worked on; any process makes the same tools of it."""

    dataset: str
    classes: str
    domain: str
    options: Options


@dataclass(frozen=True)
class Piece:
    """Pairs to be worked on, and where: ``<stem>.tar`` and ``<stem>.rows``."""

    setting: Setting
    stem: Path
    pairs: tuple[Marked, ...]

    @property
    def tar(self) -> Path:
        """The samples."""
        return self.stem.with_suffix(".tar")

    @property
    def rows(self) -> Path:
        """Their rows."""
        return self.stem.with_suffix(".rows")

    def identity(self) -> str:
        """Changes with the names and sizes of files, and with all that is asked for but what may be bad."""
        setting = self.setting
        asked = {n: v for n, v in setting.options.changing().items() if n in ("mapping", "jpeg", "range")}
        told = [_FORM, setting.dataset, class_set(setting.classes).name, setting.domain, asked]
        told += [[[p.key, p.image.name, _size(p.image), _size(p.label), bad] for p, bad in self.pairs]]
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()


class Done(NamedTuple):
    """What became of a piece."""

    samples: int
    encoded: int  # images that are not stored as they came
    bad: list[BadPair]


def pieces_of(
    setting: Setting, folder: Path, pairs: Sequence[Pair], twice: dict[str, BadPair]
) -> list[Piece]:
    """The pieces of a domain; ``twice`` are the pairs whose keys are those of others."""
    marked = [Marked(pair, twice.get(pair.key)) for pair in pairs]
    starts = range(0, len(marked), PAIRS)
    return [
        Piece(setting, folder / f"{number:07d}", tuple(marked[start : start + PAIRS]))
        for number, start in enumerate(starts)
    ]


def make_piece(piece: Piece) -> Done:
    """Make a piece unless it is there: by the bytes of its pairs, and the checksums of its files."""
    content = _content(piece)
    rows = load(piece.rows)
    if rows is None or rows.header["identity"] != piece.identity() or rows.header["content"] != content:
        rows = None
    if rows is None or not _is_whole(piece, rows):
        rows = _make(piece, content)
    return _done(rows)


def made_piece(piece: Piece) -> Done | None:
    """What became of a piece that was made before; None where it is not there."""
    rows = load(piece.rows)
    if (
        rows is None
        or rows.header["identity"] != piece.identity()
        or _size(piece.tar) != rows.header["bytes"]
    ):
        return None
    return _done(rows)


def _done(rows: Rows) -> Done:
    return Done(len(rows), rows.header["encoded"], [BadPair(*each) for each in rows.header["bad"]])


class _Used(NamedTuple):
    """The options that change what becomes of a pair."""

    mapping: Path | None
    span: tuple[float, float] | None
    jpeg: int | None


@lru_cache(maxsize=1)  # a table of colours has 32 MB
def _tools(dataset: str, classes: str, options: _Used, _: str) -> tuple[PairCheck, Encoder]:
    """What checks and encodes pairs; made again where the content of a named file is another."""
    decode = find_source(dataset, options.mapping, classes).decoder(class_set(classes))
    check = PairCheck(decode, options.span, options.jpeg is not None)
    return check, Encoder(dataset, decode, options.span, options.jpeg)


def _make(piece: Piece, content: int) -> Rows:
    setting = piece.setting
    named = json.dumps([class_set(setting.classes).name, setting.options.changing().get("mapping")])
    used = _Used(setting.options.mapping, setting.options.span, setting.options.jpeg)
    check, encode = _tools(setting.dataset, setting.classes, used, named)
    found = [bad or check(pair) for pair, bad in piece.pairs]
    good = [each.pair for each, result in zip(piece.pairs, found, strict=True) if isinstance(result, str)]
    draft = piece.stem.with_name(f".{piece.stem.name}.{os.getpid()}")
    with draft.open("wb") as stream:
        write_tar(stream, (encode(pair) for pair in good))
    samples = _checked(piece, draft)
    header = {
        "identity": piece.identity(),
        "content": content,
        "bytes": draft.stat().st_size,
        "bad": [result for result in found if isinstance(result, BadPair)],
        "encoded": found.count(ENCODED),
    }
    classes = class_set(setting.classes).num_classes
    rows = rows_of(samples, header, classes, _segments(draft, samples))
    os.replace(draft, piece.tar)
    rows.save(piece.rows)
    return rows


def write_tar(stream: io.BufferedWriter, samples: Iterator[ShardSample]) -> None:
    """Write samples as the shards of a domain have them, byte for byte."""
    with tarfile.open(fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for sample in samples:
            for name, raw in members(sample):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(raw), 0, 0o444
                info.uname = info.gname = "bigdata"  # what webdataset writes
                archive.addfile(info, io.BytesIO(raw))


def _checked(piece: Piece, tar: Path) -> list[CheckedSample]:
    domain = piece.setting.domain
    classes = class_set(piece.setting.classes).num_classes
    samples, findings = [], Findings(domain)
    for each in check_shard(tar, classes, domain):
        if isinstance(each, Fault):
            findings.add(domain, each)
        else:
            samples.append(each)
    if findings.bad:
        findings.good = len(samples)
        raise BadSamples(findings, "Repair them, or leave them out (`--exclude KEY`)")
    return samples


def _segments(tar: Path, samples: Sequence[CheckedSample]) -> npt.NDArray[Any]:
    found, start = [], 0
    with tar.open("rb") as stream:
        for each in samples:
            end = -(-sum(each.label) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # the label comes last
            crc = zlib.crc32(stream.read(end - start))
            found.append((end, crc, each.image[1] + each.label[1] + each.json[1]))
            start = end
    return np.array(found, dtype=SEGMENT)


def _is_whole(piece: Piece, rows: Rows) -> bool:
    """Whether the tar of a piece is the one that its rows describe."""
    if _size(piece.tar) != rows.header["bytes"]:
        return False
    with piece.tar.open("rb") as stream:
        start = 0
        for end, crc, _ in rows.segments.tolist():
            if zlib.crc32(stream.read(end - start)) != crc:
                return False
            start = end
    return True


def _content(piece: Piece) -> int:
    """CRC-32 of all files of the pairs."""
    crc = 0
    for pair, _ in piece.pairs:
        for path in (pair.image, pair.label):
            if path.is_file():
                crc = zlib.crc32(path.read_bytes(), crc)
    return crc


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None

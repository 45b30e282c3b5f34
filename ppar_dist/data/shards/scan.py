"""One shard, checked by whichever process comes to it: its rows, in a file beside the shards."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ppar_dist.data.shards.check import CheckedSample, Fault, check_shard
from ppar_dist.data.shards.compressed import ShardFile, plain_shard
from ppar_dist.data.shards.grouping import Endings
from ppar_dist.data.shards.rows import SEGMENT, Rows, load, rows_of
from ppar_dist.data.shards.sample import SampleError
from ppar_dist.files.durable import fingerprint

_FORM = 1  # of what is found and kept; raise it when a check changes


@dataclass(frozen=True)
class Scan:
    """A shard to be checked.

    Attributes:
        file: the shard.
        rows: where its rows are kept.
        domain: name, for messages.
        num_classes: K.
        endings: what images and labels are called.
    """

    file: ShardFile
    rows: Path
    domain: str
    num_classes: int
    endings: Endings

    @property
    def identity(self) -> str:
        """Changes with everything but the shard's content that rows depend on."""
        told = [_FORM, self.file.path.name, self.domain, self.num_classes, asdict(self.endings)]
        return hashlib.sha256(json.dumps(told).encode("utf-8", "surrogatepass")).hexdigest()


def scan(task: Scan) -> int:
    """Check a shard unless its rows are there already; returns how many good samples it has.

    Rows of before count when their checksum holds and the shard's sha256 is the one that they note.
    """
    notes: list[str] = []
    path, problem = plain_shard(task.file, notes)
    kept = load(task.rows)
    if kept is not None and problem is None and kept.header["identity"] == task.identity:
        noted = kept.header["bytes"], kept.header["sha256"]
        if _fingerprint(path) == noted:
            return len(kept)
    rows = _scan(task, path, problem, notes)
    rows.save(task.rows)
    return len(rows)


def kept_rows(task: Scan) -> Rows | None:
    """The rows of a shard that was checked, by whichever process; None where they are not those of it.

    The shard is read again where it was touched since.
    """
    rows = load(task.rows)
    if rows is None or rows.header["identity"] != task.identity:
        return None
    path = task.rows.parent.parent / rows.header["name"]
    try:
        now = path.stat()
    except OSError:
        return rows if not rows.header["sha256"] else None
    if now.st_size == rows.header["bytes"] and now.st_mtime_ns == rows.header["mtime"]:
        return rows
    same = list(_fingerprint(path)) == [rows.header["bytes"], rows.header["sha256"]]
    return rows if same else None


def _scan(task: Scan, path: Path, problem: str | None, notes: list[str]) -> Rows:
    where = f"{task.domain}/{path.name}"
    ignored: Counter[str] = Counter()
    found: Iterable[CheckedSample | Fault]
    if problem is None:
        found = check_shard(path, task.num_classes, where, ignored, task.endings)
    else:
        found = [Fault(None, SampleError(where, "damaged", problem))]
    samples: list[CheckedSample] = []
    faults: list[list[Any]] = []  # each behind the number of good samples before it
    for each in found:
        if isinstance(each, Fault):
            faults.append([len(samples), each.key, each.error.where, each.error.reason, each.error.detail])
        else:
            samples.append(each)
    size, digest = fingerprint(path) if samples else _fingerprint(path)
    header = {"identity": task.identity, "name": path.name, "bytes": size, "sha256": digest}
    header |= {"mtime": _mtime(path), "faults": faults, "ignored": dict(ignored), "unpacked": notes}
    return rows_of(samples, header, task.num_classes, np.empty(0, SEGMENT))


def _fingerprint(path: Path) -> tuple[int, str]:
    try:
        return fingerprint(path)
    except OSError:  # a fault says so
        return 0, ""


def _mtime(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0

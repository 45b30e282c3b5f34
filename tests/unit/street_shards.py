"""Small domains of real shards, a loader over them, and ways to damage them."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import Batch, train_loader
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.data.sources import open_sources
from tests.bucket import follow, here, in_bucket
from tests.ranks import encode

SIZES = {"day": 20, "rain": 11}
LENIENT = {"holdout": 0, "max_bad_ratio": 1.0}  # of `data`: every sample trains, however many are bad


def scene(number: int, height: int = 36, width: int = 48) -> tuple[bytes, bytes]:
    rng = np.random.default_rng(number)
    smooth = np.kron(rng.integers(0, 256, (3, 4, 3)), np.ones((height // 3, width // 4, 1)))
    label = rng.integers(0, 6, (height, width)).astype(np.uint8)
    return encode(smooth.astype(np.uint8), "JPEG"), encode(label, "PNG")


def scenes(name: str, count: int) -> Iterator[tuple[str, bytes, bytes, dict[str, Any]]]:
    for number in range(count):
        yield f"{name}_{number}", *scene(number), {}


def write_domains(folder: Path, samples_per_shard: int = 3) -> Path:
    """The domains of ``SIZES`` below ``folder``, which is returned."""
    for name, count in SIZES.items():
        write_domain(folder / name, "roads6", scenes(name, count), samples_per_shard=samples_per_shard)
    return folder


def config(root: Path, data: dict[str, Any] | None = None, **train: Any) -> Config:
    sources = {"root": str(root), "classes": "roads6", "sources": list(SIZES), "size": 24, "crop": (24, 32)}
    tree = {
        "seed": 5,
        "run": {"dir": "run"},
        "data": sources | {"workers": 0, "block": 4, "window": 2} | (data or {}),
        "model": {"backbone": {"kind": "open_clip"}},
        "train": {"steps": 10, "global_batch": 6} | train,
    }
    return parse_config(in_bucket(tree))


def drain(cfg: Config, rank: int = 0, world: int = 1, start: int = 0, stop: int = 60) -> list[Batch]:
    return list(train_loader(cfg, open_sources(cfg), rank, world, start, stop))


def flat(batches: list[Batch]) -> dict[int, tuple[Any, ...]]:
    """Everything about each position, so that runs can be compared position by position."""
    return {
        int(batch.positions[i]): (
            batch.images[i].numpy().tobytes(),
            batch.labels[i].numpy().tobytes(),
            int(batch.domains[i]),
            int(batch.samples[i]),
            batch.colours[i],
            batch.keys[i],
        )
        for batch in batches
        for i in range(len(batch))
    }


def all_bad(batches: list[Batch]) -> list[Any]:
    return sorted(bad for batch in batches for bad in batch.bad)


def rewrite_member(index: DomainIndex, sample: int, kind: str, content: bytes) -> None:
    """Give a sample another member, recorded as if it had been indexed so: at the end of its shard."""
    path = shard_of(index, sample)
    with path.open("ab") as shard:
        offset = shard.tell()
        shard.write(content)
    change_record(index, sample, **{f"{kind}_offset": offset, f"{kind}_size": len(content)})
    if kind != "json":
        change_record(index, sample, **{f"{kind}_crc": zlib.crc32(content)})
    note_bytes(index, path)


def note_bytes(index: DomainIndex, path: Path) -> None:
    """Have domain.json give the size that a shard has now, and the hash of the records."""
    file, records = (here(index.path) / name for name in ("domain.json", "index.npy"))
    meta = json.loads(file.read_text())
    for shard in meta["shards"]:
        if shard["name"] == path.name:
            shard["bytes"] = path.stat().st_size
    meta["arrays"]["index.npy"] = hashlib.sha256(records.read_bytes()).hexdigest()
    file.write_text(json.dumps(meta))
    for changed in (path, records, file):
        follow(changed)


def change_record(index: DomainIndex, sample: int, **fields: int) -> None:
    """Overwrite fields of a sample's record in index.npy."""
    records = np.lib.format.open_memmap(here(index.path) / "index.npy", mode="r+")
    for name, value in fields.items():
        records[sample][name] = value
    records.flush()
    follow(here(index.path) / "index.npy")


def overwrite(index: DomainIndex, sample: int, kind: str, content: bytes) -> None:
    """Overwrite the beginning of a stored member in place, with the index unchanged."""
    record = index.records[sample]
    with shard_of(index, sample).open("r+b") as shard:
        shard.seek(int(record[f"{kind}_offset"]))
        shard.write(content)
    follow(shard_of(index, sample))


def shard_of(index: DomainIndex, sample: int) -> Path:
    return here(index.path) / index.shards[int(index.records[sample]["shard"])]


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w", format=form) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))

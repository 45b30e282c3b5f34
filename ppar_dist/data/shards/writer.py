"""Write a domain folder: WebDataset shards and their index, published whole or not at all."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import webdataset

from ppar_dist.data.shards.build_index import BadSamples, index_folder
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import DataError

# A dot would end the key for every WebDataset reader, a slash would make folders of keys.
_SHARD_BYTES = 256e6  # a shard ends when it has as many
_KEY = re.compile(r"[A-Za-z0-9_-]+")


class ShardSample(NamedTuple):
    """One sample to be written; plain (key, image, label, metadata) tuples do as well."""

    key: str
    image: bytes  # JPEG
    label: bytes  # 8-bit single-channel PNG of train ids, 255 = no class
    metadata: dict[str, Any]  # small and JSON-serialisable


def safe_key(name: str) -> str:
    """A valid sample key from any file stem: characters other than letters, digits, _ and - become _."""
    return re.sub(r"[^A-Za-z0-9_-]", "_", name) or "_"


def write_domain(
    folder: Path | str,
    class_set: str,
    samples: Iterable[ShardSample | tuple[str, bytes, bytes, dict[str, Any]]],
    samples_per_shard: int = 256,
) -> DomainIndex:
    """Write samples in their order to ``folder`` and index them.

    Shards go to a hidden folder beside it, which is renamed when the index is complete; a domain
    that was there before is replaced, any other folder is not. The bytes written are a function
    of the samples alone, so that the same data give the same fingerprint.

    Raises:
        DataError: a key is malformed or repeated, there are no samples, a sample is bad
            (see ``index_folder``), or ``folder`` exists and is not a domain.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / "domain.json").exists() and any(folder.iterdir()):
        raise DataError(f"{folder} exists and is not a domain folder; remove it or choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    staging = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    try:
        _write_shards(staging, samples, samples_per_shard)
        index_folder(staging, class_set, name=folder.name)
        _publish(staging, folder)
    except BadSamples as error:
        raise BadSamples(error.findings, "Repair them, or leave them out (`--exclude KEY`)") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return DomainIndex.open(folder)


def _write_shards(folder: Path, samples: Iterable[Any], samples_per_shard: int) -> None:
    opened: list[BinaryIO] = []

    def open_plain(name: str) -> BinaryIO:
        # Given an opener, webdataset does not interpret the name ("pipe:", URLs) and leaves closing to us.
        opened.append((folder / name).open("wb"))
        return opened[-1]

    keys: set[str] = set()
    try:
        with webdataset.ShardWriter(
            "shard-%06d.tar",
            maxcount=samples_per_shard,
            maxsize=_SHARD_BYTES,
            opener=open_plain,
            post=lambda _: opened.pop().close(),
            verbose=0,
            encoder=False,
            mtime=0,
            format="PAX_FORMAT",  # keys longer than 100 characters
        ) as writer:
            for key, image, label, metadata in samples:
                _check_key(key, keys)
                extra = json.dumps(metadata, sort_keys=True).encode("utf-8")
                writer.write({"__key__": key, "jpg": image, "png": label, "json": extra})
    finally:
        for stream in opened:
            stream.close()


def _check_key(key: str, seen: set[str]) -> None:
    if not _KEY.fullmatch(key):
        raise DataError(f"sample key {key!r} may hold letters, digits, _ and - only; rename the file")
    if key in seen:
        raise DataError(f"sample key {key!r} occurs twice; keys are unique within a domain, rename one")
    seen.add(key)


def _publish(staging: Path, folder: Path) -> None:
    if not folder.exists():
        os.rename(staging, folder)
        return
    previous = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(previous, ignore_errors=True)
    os.rename(folder, previous)
    os.rename(staging, folder)
    shutil.rmtree(previous)

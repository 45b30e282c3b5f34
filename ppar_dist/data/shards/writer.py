"""Write a domain folder: WebDataset shards and their index, published whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import unicodedata
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ppar_dist.data.shards.build_index import index_folder, writing
from ppar_dist.data.shards.findings import BadSamples
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.manifest import Prepared
from ppar_dist.errors import DataError

SHARD_NAME = "shard-%06d.tar"
SHARD_BYTES = 256e6  # a shard ends when its members have as many
SAMPLES_PER_SHARD = 256  # or when it has as many
_PNG = b"\x89PNG"
LONGEST_NAME = 200  # letters of a domain: while it is written, its folder's name has a process id as well
_KEY_BYTES = 1024  # the most that an index takes
# Variation selectors and fillers: keys that differ in them alone would look the same.
_UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0100-\U000e01ef]"
)


class ShardSample(NamedTuple):
    """One sample to be written; plain (key, image, label, metadata) tuples do as well."""

    key: str
    image: bytes  # JPEG, or PNG: its member is <key>.image.png
    label: bytes  # 8-bit single-channel PNG of train ids, 255 = no class
    metadata: dict[str, Any]  # small and JSON-serialisable


def safe_key(name: str) -> str:
    """A valid sample key from any file stem, a function of the stem alone.

    Letters, digits and marks of any script stay, and _ and -; every other character becomes _. Where that, or
    the one spelling of letters that Unicode holds equal, loses something, a hash of the name follows; so it
    does where the name is too long. Of plain ASCII names the keys have no hash: a.b and a_b have the same.
    """
    key = "".join(c if _stays(c) else "_" for c in unicodedata.normalize("NFC", name)) or "_"
    # Fingerprints of domains depend on the keys of ASCII names, which are older than the hash.
    if (key == name or name.isascii()) and len(key.encode("utf-8")) <= _KEY_BYTES:
        return key
    end = "_" + hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return key.encode("utf-8")[: _KEY_BYTES - len(end)].decode("utf-8", "ignore") + end


def _stays(character: str) -> bool:
    # A dot would end the key for every WebDataset reader, a slash would make folders of keys.
    written = character.isalnum() or unicodedata.category(character) in ("Mn", "Mc")
    return character in "_-" or (written and not _UNSEEN.match(character))


def write_domain(
    folder: Path | str,
    class_set: str,
    samples: Iterable[ShardSample | tuple[str, bytes, bytes, dict[str, Any]]],
    samples_per_shard: int = SAMPLES_PER_SHARD,
    prepared: Prepared | None = None,
) -> DomainIndex:
    """Write samples in their order to ``folder`` and index them.

    Shards go to a hidden folder beside it, which is renamed when the index is complete; a domain
    that was there before is replaced, any other folder is not. The bytes written are a function
    of the samples alone, so that the same data give the same fingerprint. ``prepared`` goes into the
    domain's file.

    Raises:
        DataError: a key is malformed or repeated, there are no samples, a sample is bad
            (see ``index_folder``), ``folder`` exists and is not a domain, or it cannot be written.
    """
    folder = Path(folder)
    with writing(folder):
        refuse_foreign(folder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        try:
            _write_shards(staging, samples, samples_per_shard)
            index_folder(staging, class_set, name=folder.name, prepared=prepared)
            publish_domain(staging, folder)
        except BadSamples as error:
            raise BadSamples(error.findings, "Repair them, or leave them out (`--exclude KEY`)") from None
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return DomainIndex.open(folder)


def refuse_foreign(folder: Path) -> None:
    """Raises DataError where a folder holds something else than a domain."""
    if folder.exists() and not (folder / "domain.json").exists() and any(folder.iterdir()):
        raise DataError(f"{folder} exists and is not a domain folder; remove it or choose another --out")


def members(sample: ShardSample) -> list[tuple[str, bytes]]:
    """The members of a sample in a shard, by name and in their order."""
    key, image, label, metadata = sample
    extra = json.dumps(metadata, sort_keys=True).encode("utf-8")
    ending = "image.png" if image.startswith(_PNG) else "jpg"
    return [(f"{key}.{ending}", image), (f"{key}.json", extra), (f"{key}.png", label)]


def _write_shards(folder: Path, samples: Iterable[Any], samples_per_shard: int) -> None:
    import webdataset  # late, with torch: who prepares or indexes needs neither

    opened: list[BinaryIO] = []

    def open_plain(name: str) -> BinaryIO:
        # Given an opener, webdataset does not interpret the name ("pipe:", URLs) and leaves closing to us.
        opened.append((folder / name).open("wb"))
        return opened[-1]

    keys: dict[str, str] = {}  # with the file that each is of
    try:
        with webdataset.ShardWriter(
            SHARD_NAME,
            maxcount=samples_per_shard,
            maxsize=SHARD_BYTES,
            opener=open_plain,
            post=lambda _: opened.pop().close(),
            verbose=0,
            encoder=False,
            mtime=0,
            format="PAX_FORMAT",  # keys longer than 100 characters
        ) as writer:
            for key, image, label, metadata in samples:
                _check_key(key, str(metadata.get("file", "")), keys)
                extra = json.dumps(metadata, sort_keys=True).encode("utf-8")
                ending = "image.png" if image.startswith(_PNG) else "jpg"
                writer.write({"__key__": key, ending: image, "png": label, "json": extra})
    finally:
        for stream in opened:
            stream.close()


def _check_key(key: str, file: str, seen: dict[str, str]) -> None:
    if key != safe_key(key):
        raise DataError(
            f"sample key {key!r} may hold letters, digits, _ and - only, and {_KEY_BYTES} bytes at most; "
            "rename the file"
        )
    if key in seen:
        files = f" ({seen[key]} and {file})" if file else ""
        raise DataError(
            f"sample key {key!r} occurs twice{files}; keys are unique within a domain, rename one"
        )
    seen[key] = file


def publish_domain(staging: Path, folder: Path) -> None:
    """Put a whole domain in the place of the one that is there."""
    if not folder.exists():
        os.rename(staging, folder)
        return
    previous = folder.parent / f".{folder.name}.{os.getpid()}.old"
    shutil.rmtree(previous, ignore_errors=True)
    os.rename(folder, previous)
    os.rename(staging, folder)
    shutil.rmtree(previous)

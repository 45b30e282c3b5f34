"""The index of a domain: where each sample lies in its shards, so that any sample is one ``pread`` away.

::

    <domain>/domain.json         version, class set, shards with bytes and sha256 (written last)
    <domain>/index.npy           (N,) records: shard, offsets and sizes of the members, label height and width
    <domain>/counts.npy          (N, K) pixels per train id (255 is not counted)
    <domain>/keys.npy            (N,) sample keys, UTF-8
    <domain>/shard-000000.tar …  adjacent members <key>.jpg, <key>.png, <key>.json (optional)

The arrays are memory-mapped: opening a domain costs the same for ten samples and for ten million.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.config import ConfigError
from ppar_dist.data.samples import DataError, RawSample
from ppar_dist.data.scan import scan_shard
from ppar_dist.labels import class_set as find_class_set

VERSION = 1
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
    ]
)
_OPEN_SHARDS = 32  # file descriptors held per domain and process
_REMEDY = "run `ppar-dist prepare` for a known data set, or `ppar-dist index` for shards of your own"


@dataclass(frozen=True)
class DomainIndex:
    """A domain folder, opened: N samples of K classes. Immutable but for its open files."""

    name: str
    path: Path
    class_set: str
    classes: tuple[str, ...]
    shards: tuple[str, ...]
    num_samples: int
    records: npt.NDArray[Any]  # (N,) RECORD
    counts: npt.NDArray[np.uint32]  # (N, K)
    keys: npt.NDArray[np.bytes_]  # (N,)
    fingerprint: str  # changes whenever shards, their order or the class set change
    _files: dict[int, int] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def open(cls, path: Path | str) -> DomainIndex:
        """Open a domain folder.

        Raises:
            ConfigError: folder, index or shard missing, another version, or a shard that has
                changed its size since it was indexed.
        """
        path = Path(path)
        meta = _read_meta(path)
        shards = tuple(shard["name"] for shard in meta["shards"])
        for shard in meta["shards"]:
            _check_shard(path, shard)
        arrays = {name: _map(path / f"{name}.npy") for name in ("index", "counts", "keys")}
        n, k = meta["num_samples"], len(meta["classes"])
        if arrays["index"].dtype != RECORD or {len(array) for array in arrays.values()} != {n}:
            raise ConfigError(f"{path}: the index does not belong to its domain.json; {_REMEDY}")
        if arrays["counts"].shape != (n, k):
            raise ConfigError(f"{path}: counts.npy is not {n} samples by {k} classes; {_REMEDY}")
        return cls(
            name=meta["name"],
            path=path,
            class_set=meta["class_set"],
            classes=tuple(meta["classes"]),
            shards=shards,
            num_samples=n,
            records=arrays["index"],
            counts=arrays["counts"],
            keys=arrays["keys"],
            fingerprint=_fingerprint(meta),
        )

    def __len__(self) -> int:
        return self.num_samples

    def __reduce__(self) -> tuple[Callable[[Path], DomainIndex], tuple[Path]]:
        return DomainIndex.open, (self.path,)  # workers map the files again instead of copying them

    def key(self, sample: int) -> str:
        """The key of a sample, unique within the domain."""
        return bytes(self.keys[sample]).decode("utf-8")

    def read(self, sample: int) -> RawSample:
        """The undecoded members of a sample, read at their offsets.

        Raises:
            DataError: the shard has gone, or ends before the member does.
        """
        record = self.records[sample]
        shard, key = int(record["shard"]), self.key(sample)
        where = f"{self.name}/{self.shards[shard]} sample {key}"
        return RawSample(
            where=where,
            key=key,
            image=self._pread(shard, int(record["image_offset"]), int(record["image_size"]), where),
            label=self._pread(shard, int(record["label_offset"]), int(record["label_size"]), where),
        )

    def metadata(self, sample: int) -> dict[str, Any]:
        """The sample's JSON member, {} where it has none; raises DataError when it is no JSON object."""
        record = self.records[sample]
        shard, where = int(record["shard"]), f"{self.name} sample {self.key(sample)}"
        if not record["json_size"]:
            return {}
        raw = self._pread(shard, int(record["json_offset"]), int(record["json_size"]), where)
        try:
            value = json.loads(raw)
        except ValueError as error:
            raise DataError(where, "json", f"the .json member is not valid JSON ({error})") from None
        if not isinstance(value, dict):
            raise DataError(where, "json", "the .json member holds no object")
        return value

    def changed_shards(self) -> list[str]:
        """Names of shards whose sha256 is no longer the indexed one (reads all of them)."""
        return [
            shard["name"]
            for shard in _read_meta(self.path)["shards"]
            if _sha256(self.path / shard["name"]) != shard["sha256"]
        ]

    def _pread(self, shard: int, offset: int, size: int, where: str) -> bytes:
        try:
            raw = os.pread(self._file(shard), size, offset)
        except OSError as error:
            raise DataError(where, "shard_unreadable", f"cannot read the shard: {error.strerror}") from None
        if len(raw) != size:
            raise DataError(where, "truncated", f"the shard ends {size - len(raw)} bytes early; {_REMEDY}")
        return raw

    def _file(self, shard: int) -> int:
        if shard not in self._files:
            if len(self._files) >= _OPEN_SHARDS:
                os.close(self._files.pop(next(iter(self._files))))
            self._files[shard] = os.open(self.path / self.shards[shard], os.O_RDONLY | os.O_CLOEXEC)
        return self._files[shard]

    def __del__(self) -> None:
        for file in self._files.values():
            os.close(file)


def build_index(
    folder: Path | str,
    class_set: str,
    name: str | None = None,
    progress: Callable[[str, int], None] | None = None,
) -> DomainIndex:
    """Index the ``*.tar`` shards of a folder, ours or anybody's, and open the result.

    Every label is decoded and checked. The index appears whole: ``domain.json`` is written last.

    Args:
        folder: the domain folder; its shards are taken in the order of their names.
        class_set: the class set of the label ids.
        name: the domain's name, by default that of the folder.
        progress: called after each shard with its name and the samples found so far.

    Raises:
        ConfigError: no folder or no samples, or a key twice; DataError (a ConfigError) names shard,
            key and fault of the first bad sample.
    """
    folder = Path(folder)
    classes = find_class_set(class_set).classes
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}; check the path, or {_REMEDY}")
    domain = name or folder.resolve().name
    records: list[tuple[int, ...]] = []
    counts: list[npt.NDArray[np.uint32]] = []
    keys: list[bytes] = []
    shards = []
    for number, path in enumerate(sorted(path for path in folder.glob("*.tar") if path.is_file())):
        before = len(keys)
        for sample in scan_shard(path, len(classes), f"{domain}/{path.name}"):
            spans = (*sample.image, *sample.label, *sample.json)
            records.append((number, *spans, sample.height, sample.width))
            counts.append(sample.counts)
            keys.append(sample.key.encode("utf-8"))
        shards.append(_describe(path, len(keys) - before))
        if progress is not None:
            progress(path.name, len(keys))
    if not keys:
        raise ConfigError(f"{folder} holds no samples (pairs <key>.jpg and <key>.png in *.tar); {_REMEDY}")
    _refuse_repeated(keys, domain)
    (folder / "domain.json").unlink(missing_ok=True)  # an old one must not describe the new arrays
    _save(folder / "index.npy", np.array(records, dtype=RECORD))
    _save(folder / "counts.npy", np.stack(counts))
    _save(folder / "keys.npy", np.array(keys, dtype=np.bytes_))
    meta = {"version": VERSION, "name": domain, "class_set": class_set, "classes": list(classes)}
    meta |= {"num_samples": len(keys), "shards": shards}
    _replace(folder / "domain.json", json.dumps(meta, indent=2).encode("utf-8"))
    return DomainIndex.open(folder)


def _describe(path: Path, samples: int) -> dict[str, Any]:
    return {
        "name": path.name,
        "samples": samples,
        "bytes": path.stat().st_size,
        "sha256": _sha256(path),
    }


def _refuse_repeated(keys: list[bytes], domain: str) -> None:
    for one, other in itertools.pairwise(sorted(keys)):
        if one == other:
            raise ConfigError(
                f"domain {domain}: key {one.decode()!r} occurs twice; keys are unique, rename it"
            )


def _read_meta(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise ConfigError(f"no domain folder {path}; {_REMEDY}")
    try:
        meta = json.loads((path / "domain.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} has no domain.json, so it is not indexed; {_REMEDY}") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path / 'domain.json'} ({error}); {_REMEDY}") from None
    if not isinstance(meta, dict) or meta.get("version") != VERSION:
        found = meta.get("version") if isinstance(meta, dict) else None
        raise ConfigError(f"{path}: index version {found}, this program reads version {VERSION}; {_REMEDY}")
    return meta


def _check_shard(path: Path, shard: dict[str, Any]) -> None:
    name = shard["name"]
    if os.path.basename(name) != name:
        raise ConfigError(f"{path}: shard name {name!r} leaves the domain folder; {_REMEDY}")
    try:
        found = (path / name).stat().st_size
    except OSError as error:
        raise ConfigError(f"shard {path / name} is missing ({error.strerror}); {_REMEDY}") from None
    if found != shard["bytes"]:
        raise ConfigError(
            f"shard {path / name} has {found} bytes, its index says {shard['bytes']}; {_REMEDY}"
        )


def _fingerprint(meta: dict[str, Any]) -> str:
    parts = [meta["version"], meta["class_set"], meta["classes"], meta["num_samples"]]
    parts += [[shard["sha256"] for shard in meta["shards"]]]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def _map(path: Path) -> npt.NDArray[Any]:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise ConfigError(f"cannot read {path} ({error}); {_REMEDY}") from None


def _save(path: Path, array: npt.NDArray[Any]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("wb") as stream:
        np.save(stream, array, allow_pickle=False)
    os.replace(temporary, path)


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(content)
    os.replace(temporary, path)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

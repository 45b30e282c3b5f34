"""``domain.json``: a domain's classes and shards, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ppar_dist.errors import DataError, UserError

VERSION = 2
AS_THEY_CAME = "as they came"
NAME = "domain.json"
ARRAYS = ("index.npy", "counts.npy", "keys.npy")
REMEDY = "run `ppar-dist prepare` for a known data set, or `ppar-dist index` for shards of your own"
_LARGEST = 256 << 20  # bytes of the file: shards by the million

_Number = Annotated[int, Field(ge=0, lt=1 << 62)]
_Text = Annotated[str, Field(min_length=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True)


class Shard(_Strict):
    """A shard as it was when it was indexed."""

    name: _Text
    samples: _Number
    bytes: _Number
    sha256: str


class Prepared(_Strict):
    """How ``prepare`` made a domain. What it does not say of a field is its default."""

    dataset: _Text
    images: _Text = AS_THEY_CAME  # or how they were encoded again
    options: dict[str, Any] = {}  # those that change what a domain holds
    left_out: dict[str, list[str]] = {}  # reason → keys of pairs that were left out
    passed_over: _Number = 0  # pictures of the data set that belong to no pair
    files: str = ""  # digest of the keys of all pairs and the sizes of their files


class DomainFile(_Strict):
    """The content of ``domain.json``."""

    version: int
    name: _Text
    class_set: _Text
    classes: Annotated[list[str], Field(min_length=1)]
    num_samples: Annotated[_Number, Field(ge=1)]
    turned: _Number = 0  # images that are turned upright when they are read
    prepared: Prepared | None = None  # of shards that `prepare` wrote
    arrays: dict[str, str] = {}  # sha256 of each file of arrays; none in indexes of earlier versions
    shards: list[Shard]

    def encoded_again(self) -> str:
        """How ``prepare`` encoded images again; "" where it did not."""
        return "" if self.prepared is None or self.prepared.images == AS_THEY_CAME else self.prepared.images

    def fingerprint(self) -> str:
        """Changes whenever the shards, their order, the classes or the form of the index change."""
        parts: list[Any] = [self.version, self.class_set, self.classes, self.num_samples]
        parts += [[shard.sha256 for shard in self.shards]]
        return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


def read_domain_file(folder: Path, name: str = NAME) -> DomainFile:
    """Read and check the ``domain.json`` of a folder, or the file of another name that is to become it.

    Raises:
        DataError: it is missing, not JSON, of another version, or inconsistent.
    """
    if not folder.is_dir():
        raise DataError(f"no domain folder {folder}; {REMEDY}")
    tree = _read_json(folder / name)
    version = tree.get("version") if isinstance(tree, dict) else None
    if version != VERSION:
        shown = repr(version)[:40]
        raise DataError(f"{folder}: index version {shown}, this program reads version {VERSION}; {REMEDY}")
    try:
        meta = DomainFile.model_validate(tree)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(f"{folder / NAME}: {place}: {first['msg']}; {REMEDY}") from None
    for shard in meta.shards:
        if os.path.basename(shard.name) != shard.name or shard.name in (".", "..") or "\0" in shard.name:
            raise DataError(f"{folder}: shard name {shard.name!r} leaves the domain folder; {REMEDY}")
    return meta


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > _LARGEST:
            raise DataError(f"{path} has more than {_LARGEST} bytes, so it is not an index; {REMEDY}")
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path.parent} has no domain.json, so it is not indexed; {REMEDY}") from None
    except UserError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path} ({error}); {REMEDY}") from None

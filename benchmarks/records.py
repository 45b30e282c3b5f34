"""What determines a benchmark's run, and what is noted of it in ``bench.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ppar_dist
from ppar_dist.config.identity import content_hash, determining
from ppar_dist.config.schema import Config
from ppar_dist.config.weights import REMEDY, weights_file
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.errors import UserError
from ppar_dist.files.durable import fingerprint, write_atomically

RECORD = "bench.json"


def identity(config: Config) -> dict[str, Any]:
    """What determines the result of a run, as plain values; keys with their default value are left out."""
    spoken = _intersection(determining(config), config.model_dump(mode="json", exclude_defaults=True))
    folders = (config.data.root / source.name for source in config.data.sources)
    return {
        "config": spoken,
        "data": [DomainIndex.open(folder).fingerprint for folder in folders],
        "text": content_hash(config.text.file),
        "weights": _weights_hash(config.model.backbone.pretrained),
    }


def key_of(config: Config) -> str:
    """The name of a run's folder: the first 12 hexadecimal digits of the hash of its `identity`."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()[:12]


def source_tree() -> str:
    """Hash of the package's source files, 12 hexadecimal digits."""
    root, found = Path(ppar_dist.__file__).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def read_record(folder: Path) -> dict[str, Any]:
    """What is noted of a run; empty for one that has not begun."""
    path = folder / RECORD
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else {}


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Replace what is noted of a run."""
    write_atomically(folder / RECORD, json.dumps(record, indent=1) + "\n")


def changed_defaults(folder: Path, config: Config) -> list[str]:
    """Values that differ between a run's record and its configuration: defaults that have changed since."""
    return _differences(read_record(folder).get("config", {}), determining(config))


def new_keys(folder: Path, config: Config) -> list[str]:
    """Keys of the configuration that did not exist when the run was trained; they have their default now."""
    return _lacking(read_record(folder)["config"], determining(config))


def _weights_hash(pretrained: str | None) -> str | None:
    """sha256 of the file that ``model.backbone.pretrained`` names; None where it is a tag or not set."""
    file = weights_file(pretrained)
    if file is None:
        return None
    if not file.is_file():
        raise UserError(
            f"model.backbone.pretrained={file} is not a file; correct the path, {REMEDY} (docs/data.md, "
            '"Weights", says how it is made)'
        )
    return fingerprint(file)[1]


def _intersection(full: Mapping[str, Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The part of ``full`` whose keys ``named`` has."""
    return {
        key: _intersection(full[key], value) if isinstance(value, dict) and value else full[key]
        for key, value in named.items()
        if key in full
    }


def _differences(then: Any, now: Any, key: str = "") -> list[str]:
    """Values that differ among the keys that both have."""
    if isinstance(then, dict) and isinstance(now, dict):
        parts = (_differences(then[name], now[name], f"{key}.{name}") for name in then if name in now)
        return [line for part in parts for line in part]
    return [] if then == now else [f"{key[1:]} was {then!r}, is {now!r}"]


def _lacking(then: Any, now: Any, key: str = "") -> list[str]:
    """Keys of ``now`` that ``then`` lacks."""
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return []
    found = [f"{key}{name}" for name in now if name not in then]
    for name in then.keys() & now.keys():
        found += _lacking(then[name], now[name], f"{key}{name}.")
    return found

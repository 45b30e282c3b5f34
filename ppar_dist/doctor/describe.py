"""Inspection: the contents of a domain of shards, a tar, an index, a checkpoint or a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from ppar_dist.checkpoint import MANIFEST, STATE
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.shards.grouping import split_name
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.tar import members
from ppar_dist.errors import UserError
from ppar_dist.run import paths
from ppar_dist.run.facts import (
    LogFacts,
    last_logged,
    leftovers,
    read_checkpoint,
    read_checkpoints,
    read_latest,
    read_log,
)
from ppar_dist.run.goodput import read_goodput
from ppar_dist.text import one_line, visible

_INDEX_FILES = frozenset({"domain.json", "index.npy", "counts.npy", "keys.npy"})
_MOST_SAMPLES = 1 << 21  # of an index whose sizes are told
_MOST_KINDS = 20  # extensions counted by name; all others count together


def inspect(path: Path) -> dict[str, Any]:
    """Describe a path in plain values (JSON-ready); ``kind`` says what it is.

    Raises:
        UserError: the path does not exist, is damaged, or is not one of these.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"nothing at {path}; give a domain folder, a tar, a checkpoint or a run")
    for matches, read_facts in _KINDS:
        if matches(path):
            try:
                return read_facts(path)
            except UserError:
                raise
            except Exception as error:  # damaged bytes can raise any exception
                raise UserError(
                    f"{path} is damaged and cannot be described: {one_line(error)}; restore or recreate it"
                ) from None
    raise UserError(
        f"{path} is neither a domain folder (domain.json), a tar, a checkpoint (manifest.json) nor a run "
        "(config.yaml); run `ppar-dist index` on a folder of tars first"
    )


def describe(facts: dict[str, Any]) -> str:
    """The facts as indented lines for a terminal."""
    return "\n".join(visible(line) for line in _lines(facts, ""))


def _domain_facts(path: Path) -> dict[str, Any]:
    index = DomainIndex.open(path)
    pixels, present = np.zeros((2, len(index.classes)), np.int64)  # (K,) each
    for part in index.stretches():
        pixels += index.counts[part].sum(axis=0, dtype=np.int64)
        present += np.count_nonzero(index.counts[part], axis=0)
    sizes, _ = sizes_of(index)
    total = max(1, int(pixels.sum()))
    return {
        "kind": "domain",
        "path": str(path),
        "name": index.name,
        "class_set": index.class_set,
        "samples": len(index),
        "shards": len(index.shards),
        "bytes": sum((path / name).stat().st_size for name in index.shards),
        "sizes": {f"{width}x{height}": count for (width, height), count in sizes.most_common(5)},
        "classes": {
            name: {"pixel_ratio": round(int(pixels[k]) / total, 5), "samples": int(present[k])}
            for k, name in enumerate(index.classes)
        },
        "first_key": index.key(0),
        "last_key": index.key(len(index) - 1),
        "fingerprint": index.fingerprint,
    }


def sizes_of(index: DomainIndex) -> tuple[Counter[tuple[int, int]], int]:
    """How many samples have which (width, height), and how many samples of the index were read for that."""
    sizes: Counter[tuple[int, int]] = Counter()
    for part in index.stretches(_MOST_SAMPLES):
        records = index.records[part]
        packed = records["width"].astype(np.uint64) << np.uint64(32) | records["height"]
        for value, count in zip(*np.unique(packed, return_counts=True), strict=True):
            sizes[int(value) >> 32, int(value) & 0xFFFFFFFF] += int(count)
    return sizes, sizes.total()


def _tar_facts(path: Path) -> dict[str, Any]:
    extensions: Counter[str] = Counter()
    keys: Counter[str] = Counter()
    example: list[str] = []
    for member in members(path, str(path)):
        if member.folder:
            continue
        key, extension = split_name(member.name)
        extensions[extension if extension in extensions or len(extensions) < _MOST_KINDS else "others"] += 1
        keys[key] += 1
        if len(example) < 3:
            example.append(member.name)
    whole = max(keys.values(), default=0)
    return {
        "kind": "shard",
        "path": str(path),
        "bytes": path.stat().st_size,
        "samples": len(keys),
        "members": dict(sorted(extensions.items())),
        "samples_with_fewer_members": sum(count < whole for count in keys.values()),
        "first_members": example,
    }


def _checkpoint_facts(path: Path) -> dict[str, Any]:
    found = read_checkpoint(path)
    sizes = found.sizes()
    facts: dict[str, Any] = {
        "kind": "checkpoint",
        "path": str(path),
        "whole": found.whole,
        "problems": found.problems,
    }
    if found.manifest:
        facts["bytes"] = found.bytes
        hidden = ("files", "whole_config")  # shown below; "config" is what of it determines the result
        facts["manifest"] = {key: value for key, value in found.manifest.items() if key not in hidden}
    if found.state:
        facts["state"] = found.state
    facts["files"] = {
        name: {"bytes": sizes.get(name, _size(path / name)), "state": state}
        for name, state in found.files.items()
    }
    for name in ("model", "ppar"):
        file = path / f"{name}.safetensors"
        if file.exists():
            facts[name] = _tensor_facts(file)
    return facts


def _tensor_facts(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            shapes = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        return {"unreadable": one_line(error)}
    return {"tensors": len(shapes), "values": sum(int(np.prod(shape)) for shape in shapes.values())}


def _run_facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": "run", "path": str(path)}
    try:
        facts |= _config_facts(load_config(paths.config_file(path)))
    except UserError as error:
        facts["config"] = f"unreadable: {error}"
    goodput = read_goodput(paths.metrics_file(path, "time"))
    logs = {file.name: read_log(file) for file in paths.metrics_files(path)}
    return facts | {
        "last_logged": last_logged(logs.get("train.jsonl")),
        "goodput": None if goodput is None else goodput.facts(),
        "logs": {name: _log_facts(log) for name, log in logs.items() if log is not None},
        "checkpoints": {item.path.name: item.problems or "whole" for item in read_checkpoints(path)},
        "latest": read_latest(path),
        "leftovers": leftovers(path),
        "results": (path / paths.RESULTS).exists(),
    }


def _config_facts(config: Config) -> dict[str, Any]:
    return {
        "name": config.run.name,
        "classes": config.data.classes,
        "sources": [source.name for source in config.data.sources],
        "backbone": f"{config.model.backbone.kind} {config.model.backbone.name}",
        "ppar": config.ppar.enabled,
        "steps": config.train.steps,
    }


def _log_facts(log: LogFacts) -> dict[str, Any]:
    facts: dict[str, Any] = {"records": log.records}
    if log.cut:
        facts["last_line"] = "cut"
    if log.unreadable:
        facts["unreadable_lines"] = len(log.unreadable)
    if log.problem:
        facts["problem"] = log.problem
    return facts


def _size(path: Path) -> int | None:
    try:
        return path.stat().st_size
    except OSError:
        return None


def _lines(value: Any, indent: str) -> list[str]:
    lines = []
    for key, item in value.items():
        if isinstance(item, dict) and item:
            flat = all(not isinstance(inner, (dict, list)) for inner in item.values())
            if flat and len(item) <= 2:
                text = ", ".join(f"{name} {_text(inner)}" for name, inner in item.items())
                lines.append(f"{indent}{key}: {text}")
                continue
            lines += [f"{indent}{key}:", *_lines(item, indent + "  ")]
        else:
            lines.append(f"{indent}{key}: {_text(item)}")
    return lines


def _text(value: Any) -> str:
    if value is None or value == {} or value == []:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


_KINDS: tuple[tuple[Callable[[Path], bool], Callable[[Path], dict[str, Any]]], ...] = (
    (lambda path: (path / "domain.json").is_file(), _domain_facts),
    (lambda path: path.name in _INDEX_FILES, lambda path: _domain_facts(path.parent)),
    (lambda path: path.is_file() and path.name.endswith(".tar"), _tar_facts),
    (lambda path: (path / MANIFEST).is_file() or (path / STATE).is_file(), _checkpoint_facts),
    (lambda path: paths.config_file(path).is_file(), _run_facts),
)

"""What a configuration implies: every derived number, and the refusals that need the data at hand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppar_dist.config import Config, ConfigError, load_config
from ppar_dist.data.index import DomainIndex
from ppar_dist.data.pipeline import open_sources, training_shares
from ppar_dist.labels import class_set
from ppar_dist.schedule import Batching, batching

# A run may go on when only these differ: they do not touch what is computed.
# Shards and text may lie elsewhere: their content is compared by hash.
_FREE_KEYS = (
    "run",
    "targets",
    "monitoring",
    "checkpoint",
    "faults",
    "train.log_every",
    "train.ledger",
    "train.micro_batch",
    "engine.zero_stage",
    "data.workers",
    "data.max_bad_ratio",
    "data.root",
    "text.file",
)


@dataclass(frozen=True)
class Plan:
    """A checked configuration with its open sources."""

    config: Config
    indexes: tuple[DomainIndex, ...]
    batching: Batching

    def lines(self) -> list[str]:
        """Every derived number, one fact per line."""
        train, cut = self.config.train, self.batching
        shares = training_shares(self.config, self.indexes)
        images = sum(share.size for share in shares)
        epochs = train.steps * train.global_batch / images
        total = sum(share.weight for share in shares)
        lines = [
            f"source {share.name}: {share.size} images to train, {len(index) - share.size} held out, "
            f"{share.weight / total:.1%} of positions"
            for share, index in zip(shares, self.indexes, strict=True)
        ]
        lines.append(
            f"batch: global {cut.global_batch} = {cut.global_batch // cut.local_batch} ranks x "
            f"{cut.accumulation} micro-batches x {cut.micro_batch}"
        )
        lines.append(f"budget: {train.steps} steps, {epochs:.1f} epochs of {images} images")
        if self.config.ppar.enabled and self.config.ppar.alignment.enabled:
            starts = [round(b * train.steps) for b in self.config.ppar.alignment.boundaries]
            lines.append(f"stages: warmup 0, text {starts[0]}, visual_text {starts[1]}, pixel {starts[2]}")
        return lines

    def facts(self) -> dict[str, Any]:
        """What a checkpoint notes of its origin: what determines the result, hashes of text and sources."""
        return {
            "config_sha256": config_hash(self.config),
            "config": determining(self.config),
            "text_sha256": content_hash(self.config.text.file),
            "data": {index.name: index.fingerprint for index in self.indexes},
        }


def make_plan(config: Config, world_size: int) -> Plan:
    """Check ``config`` against the data and the number of ranks, before any model is built.

    Raises:
        ConfigError: sources, classes, targets, text file or batch cannot work; the message says which.
    """
    classes = class_set(config.data.classes)
    cut = batching(config, world_size)
    indexes = open_sources(config)
    for index in indexes:
        if not index.counts.any():
            names = ", ".join(classes.classes)
            raise ConfigError(
                f"source {index.name} has no pixel of any class of {classes.name} ({names}); "
                "prepare it with other --classes or another mapping, or drop it"
            )
    images = sum(share.size for share in training_shares(config, indexes))
    if images < world_size:
        raise ConfigError(
            f"{world_size} ranks but only {images} training samples; use at most {images} ranks"
        )
    content_hash(config.text.file)  # refuses a file that cannot be read
    for name, folder in config.targets.items():
        if DomainIndex.open(folder, config.data.max_bad_ratio).classes != classes.classes:
            raise ConfigError(
                f"target {name} at {folder} is not labelled with {classes.name}; prepare it again"
            )
    return Plan(config, tuple(indexes), cut)


def config_hash(config: Config) -> str:
    """sha256 over what determines the result of a run."""
    return hashlib.sha256(json.dumps(determining(config), sort_keys=True).encode()).hexdigest()


def determining(config: Config) -> dict[str, Any]:
    """What determines the result of a run: the configuration without its free keys, as plain values."""
    tree: dict[str, Any] = config.model_dump(mode="json")
    for key in _FREE_KEYS:
        section, _, leaf = key.partition(".")
        if leaf:
            tree[section].pop(leaf, None)
        else:
            tree.pop(section, None)
    return tree


def config_changes(before: Config, after: Config) -> list[str]:
    """Differences that change what is computed, as ``key: old -> new``."""
    return changes_since(determining(before), after)


def changes_since(before: Mapping[str, Any], after: Config) -> list[str]:
    """Differences of a configuration to what a checkpoint noted with ``determining``."""
    old, new = _flatten(before), _flatten(determining(after))
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def stored_config(run: Path) -> Config | None:
    """The configuration a run was started with, if it was."""
    path = run / "config.yaml"
    return load_config(path) if path.exists() else None


def content_hash(path: Path | None) -> str | None:
    """sha256 of a file: it is the same text wherever it lies."""
    if path is None:
        return None
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(
            f"cannot read text.file={path}: {error.strerror}; give the path of an .npz of class embeddings, "
            "or put its folder into $PPAR_WEIGHTS (`ppar-dist text` writes such a file)"
        ) from None


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

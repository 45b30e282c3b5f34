"""The keys that determine the result of a run: their hash, and the differences of two configurations."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic_core import to_jsonable_python

from ppar_dist.config.class_file import without_folder
from ppar_dist.config.schema import Config
from ppar_dist.config.weights import weights_file
from ppar_dist.errors import ConfigError
from ppar_dist.files.durable import fingerprint
from ppar_dist.storage.location import Location

# A run may resume when only these differ: they do not change what is computed.
# Shards and text may be in another place: their content is compared by hash. So may the file of the
# backbone's weights, of which the name counts: a run starts from it once, and resumes from its checkpoint.
_FREE_KEYS = (
    "run",
    "targets",
    "evaluation",
    "monitoring",
    "checkpoint",
    "faults",
    "train.log_every",
    "train.ledger",
    "train.micro_batch",
    "engine.zero_stage",
    "engine.device",
    "engine.compile",
    "model.backbone.checkpointing",
    "engine.peak_tflops",
    "data.workers",
    "data.cache",
    "data.max_bad_ratio",
    "data.root",
    "text.file",
    "init_from",  # read at the start alone; the state notes which checkpoint it was
)


def config_hash(config: Config) -> str:
    """sha256 of the keys that determine the result of a run."""
    return hashlib.sha256(json.dumps(determining(config), sort_keys=True).encode()).hexdigest()


def determining(config: Config) -> dict[str, Any]:
    """The configuration without its free keys, as plain values: it determines the result of a run."""
    return _without_folder(_without_free_keys(config.model_dump(mode="json")))


def config_changes(before: Config, after: Config) -> list[str]:
    """Differences that change what is computed, as ``key: old -> new``."""
    return changes_since(determining(before), after)


def changes_since(before: Mapping[str, Any], after: Config) -> list[str]:
    """Differences of a configuration from a checkpoint's record of ``determining``.

    An earlier version's record may lack a key, which stands for its default, and hold one that is free now.
    """
    old, new = flatten(_without_folder(_without_free_keys(before))), flatten(determining(after))
    old = {key: _default(key) for key in new.keys() - old.keys()} | old
    keys = sorted(old.keys() | new.keys())
    return [f"{key}: {old.get(key)!r} -> {new.get(key)!r}" for key in keys if old.get(key) != new.get(key)]


def _without_free_keys(tree: Mapping[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = copy.deepcopy(dict(tree))
    for key in _FREE_KEYS:
        *sections, leaf = key.split(".")
        inner = kept
        for section in sections:
            inner = inner.get(section, {})
        inner.pop(leaf, None)
    return kept


def _default(key: str) -> Any:
    """A key's default as a plain value; None where it has none, or is of a mapping that takes any key."""
    *sections, leaf = key.split(".")
    section: Any = Config
    for name in sections:
        field = getattr(section, "model_fields", {}).get(name)
        section = field.annotation if field is not None else None
    field = getattr(section, "model_fields", {}).get(leaf)
    if field is None or field.is_required():
        return None
    return to_jsonable_python(field.get_default(call_default_factory=True))


def _without_folder(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The same, with the names alone of the files that weights and class set are; a tag stays."""
    data = tree.get("data", {})
    if isinstance(data.get("classes"), str):
        tree = {**tree, "data": {**data, "classes": without_folder(data["classes"])}}
    model = tree.get("model", {})
    backbone = model.get("backbone", {})
    file = weights_file(backbone.get("pretrained"))
    if file is None:
        return dict(tree)
    return {**tree, "model": {**model, "backbone": {**backbone, "pretrained": file.name}}}


def content_hash(path: Location | None) -> str | None:
    """sha256 of a file, which identifies the text embeddings independent of their path; None for None."""
    if path is None:
        return None
    try:
        return fingerprint(Path(str(path)))[1]
    except OSError as error:
        raise ConfigError(
            f"cannot read text.file={path}: {error.strerror}; give the path of an .npz of class embeddings, "
            "or put its folder into $PPAR_WEIGHTS (`ppar-dist text` writes such a file)"
        ) from None


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of plain values as one mapping of keys with dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat

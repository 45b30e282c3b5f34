"""A model folder: one folder that holds all that predicting needs, wherever it is copied.

::

    <folder>/
      README.md            model card, to be edited: not in the manifest
      model.safetensors    all weights, text prototypes included
      config.json          the configuration of the run; of its paths only the last names
      classes.json         class set: names, palette, native labels, prompts
      preprocessing.json   what the model does to an image, for readers in other languages
      state.json           steps and samples of the training
      manifest.json        every file but the card: bytes and sha256; versions, data fingerprints

It is a checkpoint without what only training needs, so all that reads a checkpoint reads it. It may come from
anybody: it is read as safetensors and JSON alone, and its configuration must not name anything to fetch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import FROZEN, MODEL, read_manifest
from ppar_dist.class_sets import RECORD, ClassSet, read_record
from ppar_dist.config.load import parse_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.text import one_line

CONFIG = "config.json"
CLASSES = RECORD
PREPROCESSING = "preprocessing.json"
CARD = "README.md"
KIND = "model"  # `kind` in its manifest

_LARGEST = 1 << 20  # bytes of one of its JSON files
# Options of open_clip and timm that read a file or a network, and beginnings of names that do.
_FETCHING = (
    "cache_dir",
    "checkpoint_path",
    "hf_hub_id",
    "hf_model_name",
    "hf_tokenizer_name",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
    "pretrained_hf",
    "pretrained_image",
    "pretrained_image_path",
    "pretrained_text",
    "pretrained_text_path",
    "timm_model_pretrained",
)
_SCHEMAS = ("hf-hub:", "hf_hub:", "local-dir:", "http:", "https:", "file:")


def is_model_folder(folder: Path) -> bool:
    """Whether a folder is a model folder, whole or not."""
    return (folder / CONFIG).is_file() and (folder / CLASSES).is_file()


def read_config(folder: Path) -> Config:
    """The configuration of a model folder.

    Raises:
        UserError: it cannot be read, is not vouched for by the manifest, or names what must be fetched.
    """
    listed = read_manifest(folder).get("files", {})
    for name in (MODEL, FROZEN, CONFIG, CLASSES):
        if name not in listed and (folder / name).exists():
            raise UserError(f"{folder / name} is not in the folder's manifest; export the model again")
    config = parse_config(_read(folder / CONFIG), str(folder / CONFIG))
    refuse_fetching(config, str(folder / CONFIG))
    return config


def read_classes(folder: Path) -> ClassSet:
    """The class set of a model folder.

    Raises:
        UserError: it cannot be read.
    """
    return read_record(folder / CLASSES)


def refuse_fetching(config: Config, origin: str) -> None:
    """Refuse a model whose architecture is not told by the configuration alone.

    Raises:
        UserError: its name or an option of its backbone reads another file, or a network.
    """
    backbone = config.model.backbone
    for key, value in _flat("model.backbone.options", backbone.options):
        name = key.rpartition(".")[2]
        if name in _FETCHING or (isinstance(value, str) and value.startswith(_SCHEMAS)):
            raise UserError(
                f"{origin}: {key}={value} reads another file or a network, and a model folder stands alone; "
                "train with options that name the architecture alone"
            )
    if backbone.name.startswith(_SCHEMAS):
        raise UserError(
            f"{origin}: model.backbone.name={backbone.name} reads its architecture from elsewhere, and a "
            "model folder stands alone; train with a name that the library knows"
        )


def _flat(prefix: str, tree: Any) -> Iterator[tuple[str, Any]]:
    """Every value in a tree and its key; sections count too."""
    yield prefix, tree
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield from _flat(f"{prefix}.{key}", value)


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > _LARGEST:
            raise ValueError(f"more than {_LARGEST} bytes")
        tree = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {one_line(error)}; export the model again") from None
    if not isinstance(tree, dict):
        raise UserError(f"{file} holds keys and values, got {type(tree).__name__}; export the model again")
    return tree

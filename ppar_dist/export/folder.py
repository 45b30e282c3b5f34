"""Writes a model folder (``evaluation/model_folder.py`` says what is in it): whole, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ppar_dist import __version__
from ppar_dist.checkpoint import FORMAT, MANIFEST, MODEL, STATE, opened, read_manifest, read_state
from ppar_dist.checkpoint.layout import sealed
from ppar_dist.class_sets import ClassSet, to_record
from ppar_dist.config.schema import Config
from ppar_dist.config.section import Section
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor, read_segmentor
from ppar_dist.evaluation.model_folder import (
    CARD,
    CLASSES,
    CONFIG,
    KIND,
    PREPROCESSING,
    is_model_folder,
    refuse_fetching,
)
from ppar_dist.export.card import model_card
from ppar_dist.export.exported import ExportedFolder
from ppar_dist.export.tensor_file import save_tensors
from ppar_dist.files import durable
from ppar_dist.models.segmentor import Segmentor
from ppar_dist.storage.location import Remote

_KEPT = ("config_sha256", "text_sha256", "data", "world_size", "versions")  # of a checkpoint's manifest
_PROGRESS = ("step", "samples_seen", "total_steps")  # of its state


def write(path: Path, out: Path, which: str = "latest", weights: str = "raw") -> ExportedFolder:
    """Write a model folder, load it again, and only then give it its name.

    Args:
        path: a run folder or a checkpoint folder.
        out: the folder; what is there is replaced.
        which: ``latest`` or ``best``, for a run folder.
        weights: ``raw`` or ``averaged``.

    Raises:
        UserError: the checkpoint is unusable or does not stand alone.
        RuntimeError: what was written is not the model.
    """
    with opened(Path(path), which) as checkpoint:
        if is_model_folder(checkpoint):
            raise UserError(f"{checkpoint} is a model folder already; copy it as it is")
        segmentor, config, classes = read_segmentor(checkpoint, "cpu", weights)
        refuse_fetching(config, str(checkpoint))
        manifest, state = read_manifest(checkpoint), read_state(checkpoint)
        tensors = {name: value.contiguous() for name, value in segmentor.state_dict().items()}
        texts = _texts(segmentor, config, classes, state)
        card = model_card(checkpoint, config, classes, manifest, state, weights)
    temporary = out.resolve().with_name(f".{out.resolve().name[-40:]}.{os.getpid()}")
    try:
        temporary.mkdir()
        files: dict[str, Callable[[Path], object]] = {MODEL: partial(save_tensors, tensors)}
        files |= {name: partial(_save_text, text) for name, text in texts.items()}
        _fill(temporary, files, {name: manifest[name] for name in _KEPT if name in manifest})
        durable.write(temporary / CARD, card)
        durable.sync_folder(temporary)
        _check(temporary, tensors)
        _publish(temporary, out.resolve())
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    durable.sync_folder(out.resolve().parent)
    size = sum(file.stat().st_size for file in out.iterdir())
    return ExportedFolder(out, "folder", checkpoint.name, classes.classes, 0.0, size)


def _publish(written: Path, out: Path) -> None:
    """Give a folder its name; what has the name is set aside first, and comes back where that fails."""
    aside = written.with_name(f"{written.name}.before")
    if not out.exists():
        written.rename(out)
        return
    out.rename(aside)
    try:
        written.rename(out)
    except BaseException:
        aside.rename(out)
        raise
    shutil.rmtree(aside)


def _texts(segmentor: Segmentor, config: Config, classes: ClassSet, state: dict[str, Any]) -> dict[str, str]:
    trees = {
        CONFIG: portable(config),
        PREPROCESSING: preprocessing(segmentor, config),
        STATE: {name: state[name] for name in _PROGRESS if name in state},
    }
    texts = {name: json.dumps(tree, indent=1, ensure_ascii=False) + "\n" for name, tree in trees.items()}
    return texts | {CLASSES: to_record(classes)}


def portable(config: Config) -> dict[str, Any]:
    """A configuration as plain values, without the places of the machine it was used on.

    Of each path its last name stays: names of people and disks are nobody's business.
    """
    plain: dict[str, Any] = config.model_dump(mode="json")
    hidden: dict[str, Any] = _last_names(config, plain)
    hidden["checkpoint"]["remote"] = None  # a bucket that is written to
    backbone = hidden["model"]["backbone"]
    if backbone["pretrained"] is not None:  # a tag, or a file
        backbone["pretrained"] = Path(backbone["pretrained"]).name
    return hidden


def _last_names(value: Any, plain: Any) -> Any:
    """The plain values, with the last name for each path among the values they were made from."""
    if isinstance(value, Path | Remote):
        return value.name or "."
    if isinstance(value, Section):  # not its dump, which has no URL objects any more
        return {name: _last_names(getattr(value, name), item) for name, item in plain.items()}
    if isinstance(value, dict):
        return {name: _last_names(item, plain[name]) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_last_names(item, other) for item, other in zip(value, plain, strict=True)]
    return plain


def preprocessing(segmentor: Segmentor, config: Config) -> dict[str, Any]:
    """What ``predict`` and the model do to an image, in words and numbers."""
    backbone = segmentor.backbone
    return {
        "colours": "RGB",
        "value_range": [0, 255],
        "shorter_side": config.data.size,
        "resize": "bilinear, antialiased; the shorter side gets shorter_side pixels",
        "mean": backbone.mean.tolist(),  # of values divided by 255
        "std": backbone.std.tolist(),
        "pad_to_multiple": backbone.multiple,
        "padding": "at the bottom and right, zeros after normalisation",
        "logits": "a cell per 4x4 pixels; resize them bilinearly, then take the highest",
    }


def _fill(folder: Path, files: dict[str, Callable[[Path], object]], facts: dict[str, Any]) -> None:
    entries: dict[str, dict[str, Any]] = {}
    for name, save in files.items():
        save(folder / name)
        durable.sync(folder / name)
        size, sha256 = durable.fingerprint(folder / name, from_storage=True)
        entries[name] = {"bytes": size, "sha256": sha256}
    versions = facts.get("versions", {}) | {"exported_by": __version__}
    total = sum(entry["bytes"] for entry in entries.values())
    manifest = {
        "format": FORMAT,
        "kind": KIND,
        **facts,
        "versions": versions,
        "bytes": total,
        "files": entries,
    }
    durable.write(folder / MANIFEST, json.dumps(sealed(manifest), indent=1))


def _save_text(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


def _check(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Load what was written as anybody will, and compare it bit for bit."""
    found = load_segmentor(folder)[0].state_dict()
    if found.keys() != tensors.keys():
        raise RuntimeError("the model folder does not hold the tensors of the model")
    for name, value in tensors.items():
        same = found[name].dtype == value.dtype and found[name].shape == value.shape
        if not same or found[name].numpy().tobytes() != value.numpy().tobytes():
            raise RuntimeError(f"the model folder holds another {name} than the model")

"""The image tower in the format of the library that built it, for other projects that begin with it.

open_clip: safetensors with the names of the whole model where the weights that the run began with bring a
text tower, which is added unchanged; else of the image tower alone. timm: safetensors of the trunk. Either
file is loaded by the library's own function and compared before it appears.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from open_clip.pretrained import get_pretrained_cfg
from torch import Tensor

from ppar_dist import __version__
from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.evaluation.load import load_segmentor
from ppar_dist.evaluation.model_folder import refuse_fetching
from ppar_dist.export.exported import ExportedTower
from ppar_dist.export.tensor_file import save_tensors
from ppar_dist.files import durable
from ppar_dist.models.backbone import build_backbone
from ppar_dist.models.clip import ClipText
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.text import one_line

_VISUAL = "visual."


@dataclass(frozen=True)
class _Call:
    """The call of a library's ``create_model`` that loads the file."""

    library: str
    name: str
    argument: str  # that takes the file
    options: dict[str, Any]

    def on(self, file: Path) -> Any:
        """Make the model."""
        create = importlib.import_module(self.library).create_model
        return create(self.name, **self.options, **{self.argument: str(file)})

    def text(self, file: Path) -> str:
        """As a line of Python."""
        options = [f"{name}={value!r}" for name, value in {**self.options, self.argument: str(file)}.items()]
        return f"{self.library}.create_model({', '.join([repr(self.name), *options])})"


def write(path: Path, out: Path, which: str = "latest", weights: str = "raw") -> ExportedTower:
    """Write the image tower; what adapters (LoRA) add to its weights is merged into them.

    Args:
        path: a run, checkpoint or model folder.
        out: the file to write.
        which: ``latest`` or ``best``, for a run folder.
        weights: ``raw`` or ``averaged``.

    Raises:
        UserError: the checkpoint is unusable, the tower has layers that its library lacks, or the weights
            that the run began with, whose text tower belongs to it, are gone.
        RuntimeError: the library does not load from the file what the model has.
    """
    segmentor, config, classes, checkpoint = load_segmentor(path, "cpu", which, weights)
    refuse_fetching(config, str(checkpoint))
    cfg = config.model.backbone
    state = {name: value.contiguous() for name, value in segmentor.backbone.tower.state_dict().items()}
    if cfg.kind == "timm":
        tensors, parts, call = state, "the trunk's levels", _timm_call(cfg)
    else:
        text = _text_tower(cfg)
        tensors = {_VISUAL + name: value for name, value in state.items()} | text if text else state
        parts = "the image tower, and the text tower that it began with" if text else "the image tower alone"
        call = _open_clip_call(cfg, "pretrained" if text else "pretrained_image_path")
    temporary = out.with_name(f".{os.getpid()}.{out.name[-40:]}")
    facts = {"ppar_dist": __version__, "checkpoint": checkpoint.name}
    try:
        save_tensors(tensors, temporary, facts)
        durable.sync(temporary)
        _check(tensors, call, temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    durable.sync_folder(out.resolve().parent)
    return ExportedTower(out, "tower", checkpoint.name, classes.classes, 0.0, parts, call.text(out))


def _text_tower(cfg: BackboneConfig) -> dict[str, Tensor]:
    """Everything but the image tower of the weights that a run began with; {} where they had no more."""
    if cfg.pretrained is None:
        return {}
    try:
        encoder = build_backbone(cfg.model_copy(update={"trainable": "none"})).text_tower()
    except UserError as error:
        raise UserError(
            f"open_clip loads image and text tower together, and the text tower is in the weights that the "
            f"run began with: {error}; put them where they were"
        ) from None
    if not isinstance(encoder, ClipText):
        return {}
    state: dict[str, Tensor] = encoder.model.state_dict()
    return {name: value.contiguous() for name, value in state.items() if not name.startswith(_VISUAL)}


def _open_clip_call(cfg: BackboneConfig, argument: str) -> _Call:
    name = cfg.name.replace("/", "-")
    tag = get_pretrained_cfg(name, cfg.pretrained) if cfg.pretrained else None
    options = {"force_quick_gelu": True} if tag and tag.get("quick_gelu") else {}
    return _Call("open_clip", cfg.name, argument, options | dict(cfg.options))


def _timm_call(cfg: BackboneConfig) -> _Call:
    options = {
        "features_only": True,
        "out_indices": (-4, -3, -2, -1),
        **cfg.options,
    }  # as timm_trunk builds it
    return _Call("timm", cfg.name, "checkpoint_path", options)


def _check(tensors: dict[str, Tensor], call: _Call, file: Path) -> None:
    """Have the library load the file, and compare bit for bit."""
    try:
        made = call.on(file)
    except UNREADABLE as error:
        raise UserError(
            f"{call.library} does not load this tower ({one_line(error)}): it has other layers than "
            f"{call.name} there; export a model folder instead"
        ) from None
    found = (made.visual if call.argument == "pretrained_image_path" else made).state_dict()
    differ = [name for name in tensors if name not in found or not torch.equal(found[name], tensors[name])]
    lacking = [name for name in found if name not in tensors]
    if differ or lacking:
        raise RuntimeError(
            f"{call.library} loads another {(differ + lacking)[0]} from the file than the model has"
        )

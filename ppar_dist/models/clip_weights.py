"""A file of weights into an open_clip model: names, fit, values and activation are checked before.

Whether GELU is QuickGELU is never taken from a file, because a run that is resumed or evaluated where the
file is not must compute the same: the model's name and options decide. A file that says otherwise is refused.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
from open_clip.convert import convert_state_dict
from open_clip.factory import load_checkpoint
from open_clip.model import convert_to_custom_text_state_dict, resize_pos_embed, resize_text_pos_embed
from open_clip.transformer import QuickGELU
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.errors import UserError
from ppar_dist.models.clip_names import is_hugging_face, is_weight, open_clip_names
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.weight_file import (
    FORMS,
    LoadReport,
    WeightFile,
    check_values,
    named,
    read_weights,
    types_of,
)
from ppar_dist.text import one_line

_ACTS = {"quick_gelu": True, "gelu": False}  # Hugging Face's names of the two
_CLIP = ("clip", "clip_vision_model", "clip_text_model")  # model_type; a config.json of others says nothing


def load_clip(model: Any, cfg: BackboneConfig, path: Path) -> LoadReport:
    """Load a file into an open_clip model, in the model's own precision.

    Raises:
        UserError: the file cannot be read, is not of this model, or is of another activation.
    """
    if path.suffix == ".npz":
        return _load_big_vision(model, cfg, path)
    file = read_weights(path)
    naming = "Hugging Face's names" if is_hugging_face(file.tensors) else "open_clip's names"
    weights = {name: value for name, value in file.tensors.items() if is_weight(name)}
    form = f"{file.form} with {naming}, {types_of(weights.values())}"
    zeros = check_values(path, weights)
    state = _converted(model, file, form)
    misfit = _compare(model, state)
    if misfit.refused:
        raise UserError(
            f"model.backbone.pretrained={path} ({form}, {len(file.tensors)} tensors) does not fit "
            f"{cfg.name}: {misfit.text()}; give weights of this very model, or set model.backbone.name to "
            f"theirs; accepted are {FORMS}"
        )
    activation = _check_activation(model, cfg, file)
    fitting = {name: value for name, value in state.items() if name not in misfit.left_over}
    model.load_state_dict(fitting, strict=False)  # what may be missing was decided above
    return LoadReport(
        path,
        form,
        len(file.tensors),
        len(file.tensors) - len(misfit.left_over),
        misfit.missing,
        misfit.left_over,
        zeros,
        activation,
        has_text=not misfit.tower_alone,
    )


@dataclass(frozen=True)
class _Misfit:
    """Names in which a file and a model differ."""

    missing: tuple[str, ...]
    left_over: tuple[str, ...]
    shapes: tuple[str, ...]  # with both shapes
    whole: tuple[str, ...]  # weights of whole numbers, as quantised ones are, with their type
    tower_alone: bool  # the file has nothing of a text tower, which is not a fault

    @property
    def lacking(self) -> list[str]:
        """Weights that the file ought to have."""
        return [name for name in self.missing if name.startswith("visual.") or not self.tower_alone]

    @property
    def unknown(self) -> list[str]:
        """Weights that the model has no place for."""
        return [name for name in self.left_over if is_weight(name)]

    @property
    def refused(self) -> bool:
        """Whether the file is of another model."""
        return bool(self.lacking or self.unknown or self.shapes or self.whole)

    def text(self) -> str:
        """What differs, in words."""
        parts = [f"missing: {named(self.lacking)}"] if self.lacking else []
        if self.lacking == ["visual.proj"]:
            parts = ["missing: visual.proj, the projection to the joint space (a CLIPVisionModel has none)"]
        parts += [f"left over: {named(self.unknown)}"] if self.unknown else []
        parts += [f"of another shape: {named(self.shapes)}"] if self.shapes else []
        parts += [f"no floats, as quantised weights are none: {named(self.whole)}"] if self.whole else []
        return "; ".join(parts)


def _compare(model: nn.Module, state: dict[str, Tensor]) -> _Misfit:
    own = model.state_dict()
    weights = [name for name in own if is_weight(name)]
    differ = [name for name in state if name in own and state[name].shape != own[name].shape]
    return _Misfit(
        missing=tuple(name for name in weights if name not in state),
        left_over=tuple(
            name for name in state if name not in own or (name in differ and not is_weight(name))
        ),
        shapes=tuple(
            f"{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}"
            for name in differ
            if is_weight(name)
        ),
        whole=tuple(
            f"{name} ({str(state[name].dtype).removeprefix('torch.')})"
            for name in weights
            if name in state and own[name].is_floating_point() and not state[name].is_floating_point()
        ),
        tower_alone=not any(name in state for name in weights if not name.startswith("visual.")),
    )


def _converted(model: Any, file: WeightFile, form: str) -> dict[str, Tensor]:
    """The tensors by the names of this model, in float32, positions resized to its grid."""
    try:
        state: dict[str, Tensor] = convert_state_dict(
            model, open_clip_names(file.tensors)
        )  # that is Apple's MobileCLIP
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone.pretrained={file.path} ({form}): its names cannot be translated "
            f"({one_line(error)}); accepted are {FORMS}"
        ) from None
    state = {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
    if not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    for resize in (resize_pos_embed, resize_text_pos_embed):
        with contextlib.suppress(*UNREADABLE):  # then the shapes differ, which is said below
            resize(state, model)
    return state


def _check_activation(model: nn.Module, cfg: BackboneConfig, file: WeightFile) -> str:
    """Which GELU the model uses, and what says so."""
    quick = any(isinstance(module, QuickGELU) for module in model.modules())
    kind = "QuickGELU" if quick else "GELU"
    said, by = _said(file)
    if said is None:
        return f"{kind} by model.backbone.name={cfg.name} and options: the file does not say"
    if said != quick:
        raise UserError(
            f"model.backbone.pretrained={file.path} was trained with {'QuickGELU' if said else 'GELU'} "
            f"(so says {by}), but {cfg.name} uses {kind}; set {_remedy(cfg.name, said)}"
        )
    return f"{kind}, as {by} says"


def _said(file: WeightFile) -> tuple[bool | None, str]:
    """Whether the weights want QuickGELU (None: unknown), and what says so: the file, or one beside it."""
    if file.quick_gelu is not None:
        return file.quick_gelu, "the file itself"
    hugging_face = is_hugging_face(file.tensors)
    beside = file.path.with_name("config.json" if hugging_face else "open_clip_config.json")
    if not beside.is_file():
        return None, ""
    try:
        tree = json.loads(beside.read_text(encoding="utf-8"))
        said = _hidden_act(tree) if hugging_face else bool(tree.get("model_cfg", tree).get("quick_gelu"))
    except (*UNREADABLE, RecursionError) as error:
        raise UserError(
            f"cannot read {beside}, which says how {file.path.name} was trained: {one_line(error)}; "
            "correct it or take it away"
        ) from None
    return said, str(beside)


def _hidden_act(tree: dict[str, Any]) -> bool | None:
    if tree.get("model_type") not in _CLIP:
        return None
    parts = [tree[name] for name in ("vision_config", "text_config") if name in tree] or [tree]
    acts = {part.get("hidden_act", "quick_gelu") for part in parts}  # Hugging Face leaves out what is usual
    if len(acts) > 1 or not acts <= _ACTS.keys():
        raise ValueError(
            f"hidden_act is {' and '.join(sorted(map(str, acts)))}; gelu or quick_gelu is possible"
        )
    return _ACTS[acts.pop()]


def _remedy(name: str, quick: bool) -> str:
    plain = name.replace("/", "-").removesuffix("-quickgelu")
    wanted = f"{plain}-quickgelu" if quick else plain
    if wanted in open_clip.list_models() and wanted != name:
        return f"model.backbone.name: {wanted}"
    return f"model.backbone.options: {{quick_gelu: {'true' if quick else 'false'}}}"


def _load_big_vision(model: Any, cfg: BackboneConfig, path: Path) -> LoadReport:
    """Google's SigLIP archive, which open_clip reads itself."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            count = len(archive.files)
        load_checkpoint(model, str(path))
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone.pretrained={path} is not a big_vision archive of {cfg.name}: {one_line(error)}; "
            f"accepted are, besides that, {FORMS}"
        ) from None
    return LoadReport(path, "big_vision archive", count, has_text=True)

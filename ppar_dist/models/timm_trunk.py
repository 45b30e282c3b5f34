"""Plain timm trunks as backbones: no CLIP weights, a new projection to the joint space.

dense = Σ over the levels of stride ≥ ``dense_stride`` of a 1×1 convolution of the level, resized to the
grid of the finest of them. The trunk may be trained from scratch; then take one without batch statistics,
for example ``resnet18`` with ``options: {norm_layer: groupnorm}`` or ``convnext_atto``.

Letters: B images, C_l channels of level l, D width of the joint image-text space, (h, w) feature grid.
"""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppar_dist.config.schema import BackboneConfig
from ppar_dist.config.weights import REMEDY
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.features import Features, FeatureShape
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.pyramid import SimplePyramid, pyramid_strides
from ppar_dist.models.resize import resize_bilinear
from ppar_dist.models.weight_file import LoadReport, check_values, form_of
from ppar_dist.text import one_line


class TimmTrunk(Backbone):
    """The last four levels of a timm trunk, or a simple pyramid where all levels share one stride (ViT)."""

    def __init__(
        self,
        trunk: nn.Module,
        cfg: BackboneConfig,
        embed_dim: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        info: Any = trunk.feature_info
        channels, strides = tuple(info.channels()), tuple(info.reduction())
        neck: SimplePyramid | None = None
        if len(set(strides)) == 1:
            neck, dense_stride, multiple = SimplePyramid(channels[-1]), strides[0], strides[0]
            level_channels, level_strides = neck.channels, pyramid_strides(strides[0])
            sources = [len(strides) - 1]
        else:
            sources = [
                index for index, stride in enumerate(strides) if stride >= min(cfg.dense_stride, strides[-1])
            ]
            dense_stride, multiple = strides[sources[0]], _padding_multiple(trunk, strides)
            level_channels, level_strides = channels, tuple(float(stride) for stride in strides)
        shape = FeatureShape(level_channels, level_strides, dense_stride, embed_dim, multiple)
        super().__init__(trunk, shape, cfg, mean, std)
        self.neck = neck
        self.sources = sources  # numbers of the trunk's levels that make up the dense features
        self.projections = nn.ModuleList(
            nn.Conv2d(channels[i], embed_dim, 1, bias=i == sources[0]) for i in sources
        )

    def run_tower(self, images: Float[Tensor, "B 3 H W"], dense: bool) -> Features:
        """The trunk's levels; the joint features come after the tower."""
        return Features(list(self.tower(images)), None)

    def finish(self, features: Features, dense: bool, pyramid: bool) -> Features:
        """Project to the joint space, and build the pyramid of a token trunk."""
        levels = features.pyramid
        joint = self._joint([levels[index] for index in self.sources]) if dense else None
        if not pyramid:
            return Features([], joint)
        return Features(self.neck(levels) if self.neck is not None else levels, joint)

    def _joint(self, levels: list[Tensor]) -> Tensor:
        joint: Tensor = self.projections[0](levels[0])  # (B, D, h, w)
        for projection, level in zip(self.projections[1:], levels[1:], strict=True):
            # Projecting and resizing commute; on the coarse grid the product is 4 to 16 times smaller.
            joint = joint + resize_bilinear(projection(level), (joint.shape[2], joint.shape[3]))
        return joint


def build(cfg: BackboneConfig, load_weights: bool = True) -> Backbone:
    """Build a timm trunk; see ``build_backbone``. ``pretrained`` is a file or a tag of the model."""
    if cfg.embed_dim is None:
        raise UserError(
            "model.backbone.embed_dim is required with kind: timm; set it to the text's width (512)"
        )
    known = _known_name(cfg.name)
    facts = timm.get_pretrained_cfg(known)
    options: dict[str, Any] = {"features_only": True, "out_indices": (-4, -3, -2, -1), **cfg.options}
    if facts is not None and facts.fixed_input_size:
        options.setdefault("dynamic_img_size", True)
    report: LoadReport | None = None
    if cfg.pretrained is not None and load_weights:
        trunk = _with_weights(known, cfg, options)
        report = _report(Path(cfg.pretrained))
    else:
        trunk = _create(known, cfg, options)
    mean, std = (
        (facts.mean, facts.std) if facts is not None else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    backbone = TimmTrunk(trunk, cfg, cfg.embed_dim, mean, std)
    backbone.report = report
    return backbone


def _known_name(name: str) -> str:
    if not timm.is_model(name):
        near = difflib.get_close_matches(name.split(".")[0], timm.list_models(), 3) or [
            "resnet18",
            "convnext_atto",
        ]
        raise UserError(f"unknown timm model model.backbone.name={name}; did you mean {', '.join(near)}?")
    return name


def _create(name: str, cfg: BackboneConfig, options: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, **options)
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone: timm cannot make {name} with options={cfg.options}: {one_line(error)}; "
            "correct the options, or take a trunk that has four levels and accepts any image size"
        ) from None


def _with_weights(name: str, cfg: BackboneConfig, options: dict[str, Any]) -> nn.Module:
    """The trunk with its weights; every weight matrix must have come from the file."""
    file, plain = cfg.pretrained or "", name.split(".")[0]
    tagged = timm.list_models(f"{plain}.*", pretrained=True)
    if Path(file).is_file():
        overlay: dict[str, Any] = {"file": file}
    elif f"{plain}.{file}" in tagged:
        name, overlay = f"{plain}.{file}", {}
    else:
        raise UserError(
            f"model.backbone.pretrained={file} is neither a file nor a timm tag of {name} "
            f"(with weights: {', '.join(tagged) or 'none'}); correct the path or the tag, {REMEDY}"
        )
    seed = torch.initial_seed()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = _create(name, cfg, options).state_dict()
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the same draws: what is equal afterwards was not in the file
        trunk = _load(name, file, options, overlay)
    missed = [k for k, v in trunk.state_dict().items() if v.ndim > 1 and torch.equal(v, fresh[k])]
    if missed:
        raise UserError(
            f"model.backbone.pretrained={file} does not hold {missed[0]} of {name} "
            f"({len(missed)} weights are missing); give a checkpoint of this very model"
        )
    return trunk


def _load(name: str, file: str, options: dict[str, Any], overlay: dict[str, Any]) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone.pretrained={file} cannot be loaded into {name}: {one_line(error)}; "
            "give a checkpoint of this very model"
        ) from None


def _report(file: Path) -> LoadReport | None:
    """What a file holds, its values checked; None for a tag, and for NumPy's files, which models read."""
    if not file.is_file() or file.suffix in (".npz", ".npy"):
        return None
    tensors = {
        name: value
        for name, value in timm.models.load_state_dict(str(file), weights_only=True).items()
        if isinstance(value, Tensor)
    }
    return LoadReport(
        file, f"{form_of(file)} with timm's names", len(tensors), zeros=check_values(file, tensors)
    )


def _padding_multiple(trunk: nn.Module, strides: tuple[int, ...]) -> int:
    """The finest stride if all levels round the image size up; the coarsest if any drops the rest."""
    size = 2 * strides[-1] + strides[0]
    was_training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            levels = trunk(torch.zeros(1, 3, size, size))
    except UNREADABLE:  # it takes no such size at all; whether it takes multiples is checked when it is built
        return strides[-1]
    finally:
        trunk.train(was_training)
    rounds_up = all(
        level.shape[-1] == -(-size // stride) for level, stride in zip(levels, strides, strict=True)
    )
    return strides[0] if rounds_up else strides[-1]

"""Plain timm trunks as backbones: no CLIP weights, a new projection to the joint space.

dense = Σ over the levels of stride ≥ ``dense_stride`` of a 1×1 convolution of the level, resized to the
grid of the finest of them. The trunk may be trained from scratch; then take one without batch statistics,
for example ``resnet18`` with ``options: {norm_layer: groupnorm}`` or ``convnext_atto``.

Letters: B images, C_l channels of level l, D width of the joint image-text space, (h, w) feature grid.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import timm
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.config.weights import REMEDY
from ppar_dist.errors import UserError
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.clip_names import is_weight
from ppar_dist.models.features import Features, FeatureShape
from ppar_dist.models.load_errors import UNREADABLE
from ppar_dist.models.pyramid import SimplePyramid, pyramid_strides
from ppar_dist.models.resize import resize_bilinear
from ppar_dist.models.weight_file import LoadReport, check_values, read_weights, types_of
from ppar_dist.text import one_line

# Where training scripts keep weights, in timm's order: averages before the last step's.
_ENTRIES = ("state_dict_ema", "model_ema", "state_dict", "model")
_FORMS = (
    f"a state dict saved by torch (.pt, .bin, .pth; plain or under {', '.join(_ENTRIES)}) or safetensors, "
    "with timm's names, and NumPy's files where the model reads them"
)


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
        return Features(_levels(self.tower, images), None)

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
        options = any_size_options(known, options) | options
    if known.startswith("swin"):
        options.setdefault("drop_path_rate", 0.0)  # timm's 0.1 would be noise that nobody asked for
    report: LoadReport | None = None
    if cfg.pretrained is not None and load_weights:
        trunk, report = _with_weights(known, cfg, options)
    else:
        trunk = _create(known, cfg, options)
    mean, std = (
        (facts.mean, facts.std) if facts is not None else ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    backbone = TimmTrunk(trunk, cfg, cfg.embed_dim, mean, std)
    backbone.report = report
    return backbone


def tagged_models(name: str) -> list[str]:
    """The MODEL.TAG that timm has weights of, for a model with or without a tag."""
    tagged: list[str] = timm.list_models(f"{name.split('.')[0]}.*", pretrained=True)
    return tagged


def any_size_options(name: str, options: dict[str, Any]) -> dict[str, bool]:
    """Options by which timm makes a model of one image size for any size; none where it has no such options.

    ``always_partition`` keeps Swin's windows and shifts as they are on large images: without it, stages whose
    grid is one window at the native size would never shift.
    """
    candidates: list[dict[str, bool]] = [{"dynamic_img_size": True}, {"strict_img_size": False}]
    if name.startswith("swin"):
        candidates = [{**each, "always_partition": True} for each in candidates] + candidates
    return next((each for each in candidates if _takes(name, each, options)), {})


def _takes(name: str, some: dict[str, bool], options: dict[str, Any]) -> bool:
    """Whether a model's constructor has options; nothing is drawn or allocated to see that."""
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            timm.create_model(name, **(some | options))
    except TypeError as error:
        return not any(option in str(error) for option in some)
    except UNREADABLE:
        return True  # of another cause, which is told when the model is made
    return True


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


def _with_weights(
    name: str, cfg: BackboneConfig, options: dict[str, Any]
) -> tuple[nn.Module, LoadReport | None]:
    """The trunk with its weights, and what a file held; each must have come from there.

    To see that, a second trunk is filled with other values: what is equal in both was not in the file. Tags
    and NumPy's files, which timm reads itself, are compared with a fresh trunk, where matrices alone tell.
    """
    file, plain = cfg.pretrained or "", name.split(".")[0]
    path, tagged = Path(file), tagged_models(name)
    report: LoadReport | None = None
    other: dict[str, Any] | None = None
    if path.is_file() and path.suffix not in (".npz", ".npy"):
        tensors, report = _read(path)
        tensors = _without_empty_biases(plain, file, tensors)
        overlay: dict[str, Any] = {"state_dict": tensors}
        other = {"state_dict": {k: v + 1 if v.is_floating_point() else v for k, v in tensors.items()}}
    elif path.is_file():
        overlay = {"file": file}
    elif f"{plain}.{file}" in tagged:
        name, overlay = f"{plain}.{file}", {}
    else:
        raise UserError(
            f"model.backbone.pretrained={file} is neither a file nor a timm tag of {name} "
            f"(with weights: {', '.join(tagged) or 'none'}); correct the path or the tag, {REMEDY}"
        )
    seed = torch.initial_seed()
    with torch.random.fork_rng(), _unheard():
        torch.manual_seed(seed)
        second = _create(name, cfg, options) if other is None else _load(name, file, options, other)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the same draws
        trunk = _load(name, file, options, overlay)
    compared = {k: v for k, v in second.state_dict().items() if v.is_floating_point()}
    if other is None:
        compared = {k: v for k, v in compared.items() if v.ndim > 1}
    missed = [k for k, v in trunk.state_dict().items() if k in compared and torch.equal(v, compared[k])]
    if missed:
        form = f" ({report.form})" if report is not None else ""
        raise UserError(
            f"model.backbone.pretrained={file}{form} does not hold {missed[0]} of {name} as floats "
            f"(missing weights and statistics: {len(missed)}); give a checkpoint of this very model"
        )
    return trunk, report


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """Without timm's warnings, which the other of two trunks gives too."""
    logger = logging.getLogger("timm")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load(name: str, file: str, options: dict[str, Any], overlay: dict[str, Any]) -> nn.Module:
    try:
        trunk = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    except UNREADABLE as error:
        raise UserError(
            f"model.backbone.pretrained={file} cannot be loaded into {name}: {one_line(error)}; "
            "give a checkpoint of this very model; without a network, a tag's weights downloaded elsewhere"
        ) from None
    for module in trunk.modules():  # timm keeps the overlay, and with it all tensors of the file
        if "state_dict" in (facts := vars(module).get("pretrained_cfg") or {}):
            facts["state_dict"] = None
    return trunk


def _read(file: Path) -> tuple[dict[str, Tensor], LoadReport]:
    """The tensors of a file without the names of wrappers, their values checked."""
    content = read_weights(file, _FORMS, _ENTRIES)
    # DINOv3's masks of biases are not weights, and not numbers where they were never set.
    tensors = {name: value for name, value in content.tensors.items() if not name.endswith(".bias_mask")}
    zeros = check_values(file, tensors)
    weights = [value for name, value in tensors.items() if is_weight(name)]
    form = f"{content.form} with timm's names, {types_of(weights)}"
    report = LoadReport(file, form, len(content.tensors), zeros=zeros)
    return timm.models.clean_state_dict(tensors), report


def _without_empty_biases(name: str, file: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """DINOv3's file without attention biases that are 0; others need timm's model that has them.

    timm would leave them out without a word. It has two models of most sizes, with and without.
    """
    biases = [key for key in tensors if key.endswith(".attn.qkv.bias")]
    if "storage_tokens" not in tensors or name.endswith("_qkvb"):
        return tensors
    for key in biases:
        query, _, value = tensors[key].chunk(3)  # the key's is 0 by definition
        if bool(query.any()) or bool(value.any()):
            raise UserError(
                f"model.backbone.pretrained={file} has attention biases ({key}), and {name} has none; "
                f"set model.backbone.name={name}_qkvb"
            )
    return {key: value for key, value in tensors.items() if key not in biases}


def _levels(trunk: nn.Module, images: Tensor) -> list[Tensor]:
    """The trunk's levels (B, C_l, h_l, w_l); some trunks keep the channels last."""
    levels = list(trunk(images))
    if getattr(trunk, "output_fmt", None) == "NHWC":
        return [level.permute(0, 3, 1, 2).contiguous() for level in levels]
    return levels


def _padding_multiple(trunk: nn.Module, strides: tuple[int, ...]) -> int:
    """The finest stride if all levels round the image size up; the coarsest if any drops the rest."""
    size = 2 * strides[-1] + strides[0]
    was_training = trunk.training
    trunk.eval()
    try:
        with torch.no_grad():
            levels = _levels(trunk, torch.zeros(1, 3, size, size))
    except UNREADABLE:  # it takes no such size at all; whether it takes multiples is checked when it is built
        return strides[-1]
    finally:
        trunk.train(was_training)
    rounds_up = all(
        level.shape[-1] == -(-size // stride) for level, stride in zip(levels, strides, strict=True)
    )
    return strides[0] if rounds_up else strides[-1]

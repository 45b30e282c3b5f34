"""The segmentor: backbone → decoder → class logits, for images of any size.

Images are padded at the bottom and right to what the backbone needs, and the outputs are cropped back: the
logits have ceil(H/4) × ceil(W/4) cells of 4×4 pixels each, the dense features ceil(H/s) × ceil(W/s) cells of
s×s pixels, s = ``backbone.dense_stride``, both from the top left corner. The last row and column of cells
may reach over the image's edge.

Letters: B images, K classes, D width of the joint image-text space, W decoder width, (h, w) grid of the dense
features, (H, W) pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from ppar_dist.class_sets import ClassSet
from ppar_dist.config.model_section import ModelConfig
from ppar_dist.config.schema import Config, OptimConfig
from ppar_dist.errors import UserError
from ppar_dist.models.adapters import MAGNITUDE
from ppar_dist.models.backbone import Backbone, build_backbone
from ppar_dist.models.blocks import depths, layers
from ppar_dist.models.cosine import cosine_logits
from ppar_dist.models.decoder import build_decoder
from ppar_dist.models.features import Features, ceil_div
from ppar_dist.models.image_prototypes import ImagePrototypes
from ppar_dist.models.pyramid import SimplePyramid
from ppar_dist.models.resize import resize_bilinear
from ppar_dist.models.text import text_prototypes


@dataclass
class Prediction:
    """What the segmentor says about a batch."""

    logits: Float[Tensor, "B K h_1 w_1"]  # h_1 = ceil(H/4), w_1 = ceil(W/4); float32
    dense: Float[Tensor, "B D h w"]  # features to align, not normalised; (B, D, 0, 0) when not asked for


class Segmentor(nn.Module):
    """Segments images into K classes and gives dense features in the joint image-text space.

    Args:
        cfg: decoder, classifier and logit scale.
        backbone: the image tower.
        text: (K, D) text prototypes of unit length; None with the linear classifier.
        num_classes: K.
        features: ``dense``: the backbone's joint features are aligned; ``embedding``: the decoder's, averaged
            over the same cells and projected by P.
        prototypes: correct a prediction by the prototypes of the image (`ImagePrototypes`), once `load_refit`
            has brought those of the sources.

    Raises:
        UserError: a text classifier without text, or with text of another shape.
    """

    text: Tensor | None

    def __init__(
        self,
        cfg: ModelConfig,
        backbone: Backbone,
        text: Tensor | None,
        num_classes: int,
        features: Literal["dense", "embedding"] = "dense",
        prototypes: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.decoder = build_decoder(cfg.decoder, backbone.channels, backbone.strides)
        self.features, self.scale, self.classifier = features, cfg.logit_scale, cfg.classifier
        self.num_classes, self.width = num_classes, cfg.decoder.width
        width = cfg.decoder.width
        linear = cfg.classifier == "linear"
        if not linear:
            _check_text(text, num_classes, backbone.embed_dim)
        self.register_buffer("text", text.clone() if text is not None and cfg.classifier == "otp" else None)
        self.class_vectors = (
            nn.Parameter(text.clone()) if text is not None and cfg.classifier == "otp_init" else None
        )
        self.linear = nn.Conv2d(width, num_classes, 1) if linear else None
        self.projection: nn.Parameter | None = None  # P
        if not linear or features == "embedding":
            self.projection = nn.Parameter(nn.init.orthogonal_(torch.empty(backbone.embed_dim, width)))
        self._level = _level_nearest(backbone.strides)
        neck = getattr(backbone, "neck", None)
        if isinstance(neck, SimplePyramid):
            neck.leave_out(frozenset(range(len(backbone.strides))) - self.decoder.used - {self._level})
        self.bf16 = False  # forward passes run under autocast; parameters stay fp32
        both = width + backbone.channels[self._level]
        self.image_prototypes = ImagePrototypes(num_classes, both) if prototypes else None

    def forward(self, images: Shaped[Tensor, "B 3 H W"], dense: bool = True) -> Prediction:
        """Segment raw images.

        Args:
            images: uint8 or float 0..255, any H and W.
            dense: also compute the dense features; False saves their time (plain fine-tuning, prediction).
        """
        height, width = images.shape[-2:]
        with self._autocast(images):
            prepared = self.backbone.prepare(images)
            found = self.backbone(prepared, dense=dense and self.features == "dense")
            narrow = self.decoder(found.pyramid)  # (B, W, h_0, w_0)
            logits = self._on_fours(self._learned_logits(narrow), height, width)
            if self.image_prototypes is not None and not self.training:
                logits = self.image_prototypes(logits, self._maps(found, narrow, height, width))
            return Prediction(logits, self._dense(found, narrow, dense, height, width))

    def dense(self, images: Shaped[Tensor, "B 3 H W"]) -> Float[Tensor, "B D h w"]:
        """Only the features to align, of raw images."""
        with self._autocast(images):
            if self.features == "dense":
                return self.backbone.dense_features(images)
            found = self.backbone(self.backbone.prepare(images), dense=False)
            return self._dense(found, self.decoder(found.pyramid), True, images.shape[-2], images.shape[-1])

    def _autocast(self, images: Tensor) -> AbstractContextManager[object]:
        return torch.autocast(images.device.type, torch.bfloat16) if self.bf16 else nullcontext()

    @torch.no_grad()
    def pixel_features(self, image: Shaped[Tensor, "3 H W"]) -> Float[Tensor, "V h_1 w_1"]:
        """What `refit` looks at in an image: the decoder's features and those of a level."""
        height, width = image.shape[1:]
        prepared = self.backbone.prepare(image[None])
        found = self.backbone(prepared, dense=False)
        return self._maps(found, self.decoder(found.pyramid), height, width)[0]

    def _maps(self, found: Features, narrow: Tensor, height: int, width: int) -> Tensor:
        level = resize_bilinear(found.pyramid[self._level], (narrow.shape[2], narrow.shape[3]))
        return self._on_fours(torch.cat([narrow.float(), level.float()], 1), height, width)

    @torch.no_grad()
    def load_refit(self, fitted: Mapping[str, Tensor]) -> None:
        """Take classifiers that were fitted to `pixel_features`.

        Args:
            fitted: ``linear.weight`` (K, W) and ``linear.bias`` (K,) replace those of the linear classifier;
                ``image_prototypes.means`` (K, W + C), ``image_prototypes.precision`` (W + C, W + C) and
                ``image_prototypes.shares`` (K,) are those of `ImagePrototypes`.
        """
        mine = self.state_dict()
        for name, value in fitted.items():
            mine[name].copy_(value.view_as(mine[name]))

    def _on_fours(self, maps: Tensor, height: int, width: int) -> Tensor:
        """Maps of the finest stride on the grid of the logits."""
        stride = self.backbone.strides[0]
        if stride != 4:
            # The scale is given, so that pixel 4i of the image keeps its place whatever the padding.
            maps = F.interpolate(
                maps,
                scale_factor=stride / 4,
                mode="bilinear",
                align_corners=False,
                recompute_scale_factor=False,
            )
        return maps[..., : ceil_div(height, 4), : ceil_div(width, 4)]

    def _learned_logits(self, narrow: Tensor) -> Tensor:
        if self.linear is not None:
            logits: Tensor = self.linear(narrow).float()
            return logits
        vectors = self.text if self.class_vectors is None else F.normalize(self.class_vectors.float(), dim=1)
        assert vectors is not None
        assert self.projection is not None
        return cosine_logits(narrow, self.projection, vectors, self.scale)

    def _embedding(self, narrow: Tensor, height: int, width: int) -> Tensor:
        cells = round(self.backbone.dense_stride / self.backbone.strides[0])
        mean = F.avg_pool2d(narrow, cells, ceil_mode=True, count_include_pad=False)  # (B, W, h, w)
        return self.backbone.crop_dense(mean, height, width)

    def _dense(self, found: Features, narrow: Tensor, asked: bool, height: int, width: int) -> Tensor:
        if not asked:
            return narrow.new_zeros(narrow.shape[0], self.backbone.embed_dim, 0, 0)
        if found.dense is not None:
            return self.backbone.crop_dense(found.dense, height, width)
        assert self.projection is not None
        embedding = self._embedding(narrow, height, width)
        return F.conv2d(embedding, self.projection[:, :, None, None])

    def param_groups(self, optim: OptimConfig) -> list[dict[str, Any]]:
        """Groups for the optimiser: the tower and the rest, each with and without weight decay.

        Vectors and scalars (norms, biases) do not decay. ``name`` is ``backbone`` or ``head``; layers that a
        backbone adds to its tower (pyramid, projection) are new and belong to the head. Frozen parameters are
        in no group. With ``layer_decay`` γ < 1 the tower has groups for each depth d, of n blocks, at the
        rate ``backbone_lr``·γ^(n+1−d), the lowest first; see ``blocks``.
        """
        height = self._heights(optim)
        groups: dict[tuple[str, int, bool], list[nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                above, decays = height.get(id(parameter)), parameter.ndim > 1 and MAGNITUDE not in name
                place = ("head", 0) if above is None else ("backbone", -above)
                groups.setdefault((*place, decays), []).append(parameter)
        rates = {"backbone": optim.backbone_lr, "head": optim.lr}
        return [
            {
                "name": name,
                "params": params,
                "lr": rates[name] * optim.layer_decay**-above,
                "weight_decay": optim.weight_decay if decays else 0.0,
            }
            for (name, above, decays), params in sorted(groups.items(), key=lambda item: item[0])
        ]

    def _heights(self, optim: OptimConfig) -> dict[int, int]:
        """By id of the tower's parameters, n + 1 − d of their depth d; 0 for all without decay."""
        if optim.layer_decay == 1:
            return {id(parameter): 0 for parameter in self.backbone.tower_parameters()}
        tower = self.backbone.tower
        depth, count = depths(tower), len(layers(tower))
        if not count:
            raise UserError(
                f"optim.layer_decay={optim.layer_decay:g} follows the tower's blocks, and "
                f"{self.backbone.cfg.name} has none; set it to 1, or take another tower"
            )
        return {id(p): count + 1 - depth[name] for name, p in tower.named_parameters()}


def build_segmentor(
    cfg: Config, class_set: ClassSet, load_weights: bool = True
) -> tuple[Segmentor, Tensor | None]:
    """Build the segmentor of a configuration and its text prototypes (K, D), None where nothing needs them.

    With ``load_weights=False`` no file is read and nothing downloaded: the same architecture, whose weights
    and text a checkpoint brings; no prototypes are returned.
    """
    backbone = build_backbone(cfg.model.backbone, load_weights)
    text = None
    if cfg.ppar.enabled or cfg.model.classifier != "linear":
        if load_weights:
            text = text_prototypes(cfg.text, class_set, backbone)
        else:
            # Right in shape; a checkpoint brings the values.
            text = torch.eye(class_set.num_classes, backbone.embed_dim)
    backbone.drop_text_tower()
    segmentor = Segmentor(
        cfg.model,
        backbone,
        text,
        class_set.num_classes,
        cfg.ppar.alignment.features,
        cfg.refit.prototypes,
    )
    return segmentor, text if load_weights else None


def _level_nearest(strides: tuple[float, ...], wanted: float = 16.0) -> int:
    """The level of a pyramid whose stride is nearest ``wanted``: deep, and still fine."""
    return min(range(len(strides)), key=lambda i: abs(math.log2(strides[i] / wanted)))


def _check_text(text: Tensor | None, num_classes: int, embed_dim: int) -> None:
    if text is None:
        raise UserError(
            "model.classifier otp and otp_init need text prototypes; set text.file or classifier=linear"
        )
    if tuple(text.shape) != (num_classes, embed_dim):
        raise UserError(
            f"text prototypes are (K, D) = ({num_classes}, {embed_dim}), got {tuple(text.shape)}; "
            "take text of the same classes and CLIP model"
        )

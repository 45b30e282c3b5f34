"""From multi-level features to narrow pixel features, with torchvision's FPN and ASPP.

GroupNorm replaces BatchNorm, and dropout is off: no statistics of a batch and no noise, so that any
number of ranks computes what one would.

Letters: B images, C_l channels of level l (fine to coarse), W decoder width, (h_0, w_0) finest grid.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork

from ppar_dist.config.model_section import DecoderConfig


def build_decoder(
    cfg: DecoderConfig, channels: tuple[int, ...], strides: tuple[float, ...]
) -> FpnDecoder | AsppDecoder:
    """The decoder a configuration names: list of (B, C_l, h_l, w_l) → (B, W, h_0, w_0)."""
    if cfg.kind == "fpn":
        return FpnDecoder(channels, cfg.width)
    return AsppDecoder(channels, strides, cfg.width)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of at most 32 groups, each of at least 4 channels where the width allows."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels)


class FpnDecoder(nn.Module):
    """FPN, then the levels summed from coarse to fine.

    No 1×1 convolution mixes the sum: projection and classifier are linear in it and would swallow it.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__()
        self.used = frozenset(range(len(channels)))  # levels
        self.fpn = FeaturePyramidNetwork(list(channels), width, norm_layer=group_norm)

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        levels = list(self.fpn(OrderedDict((str(i), level) for i, level in enumerate(pyramid))).values())
        merged: Tensor = levels[-1].relu_()
        for level in reversed(levels[:-1]):
            merged = level.relu_() + _resize(merged, level)
        return merged


class AsppDecoder(nn.Module):
    """ASPP on the levels of stride 16 and coarser, joined with the finest level (DeepLabV3+)."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[float, ...], width: int) -> None:
        super().__init__()
        limit = min(14.0, strides[-1])
        self.first = next(index for index, stride in enumerate(strides) if stride >= limit)
        self.used = frozenset({0, *range(self.first, len(channels))})  # levels
        self.aspp = _without_batch_statistics(ASPP(sum(channels[self.first :]), [6, 12, 18], width))
        self.skip = nn.Conv2d(channels[0], width, 1)
        self.fuse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), group_norm(width), nn.ReLU(inplace=True)
        )

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        coarse = pyramid[self.first :]
        joined = torch.cat([coarse[0], *(_resize(level, coarse[0]) for level in coarse[1:])], 1)
        fused: Tensor = self.fuse(self.skip(pyramid[0]) + _resize(self.aspp(joined), pyramid[0]))
        return fused


def _resize(features: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)


def _without_batch_statistics(module: nn.Module) -> nn.Module:
    """Replace BatchNorm by GroupNorm and dropout by nothing, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        elif isinstance(child, nn.Dropout):
            setattr(module, name, nn.Identity())
        else:
            _without_batch_statistics(child)
    return module

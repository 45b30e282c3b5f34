"""From multi-level features to narrow pixel features: torchvision's FPN and ASPP, and those of an extra.

GroupNorm replaces BatchNorm, and dropout is off: no statistics of a batch and no noise, so that any
number of ranks computes what one would.

Letters: B images, C_l channels of level l (fine to coarse), W decoder width, (h_0, w_0) finest grid.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models.segmentation.deeplabv3 import ASPP
from torchvision.ops import FeaturePyramidNetwork

from ppar_dist.config.model_section import DecoderConfig

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def build_decoder(cfg: DecoderConfig, channels: tuple[int, ...], strides: tuple[float, ...]) -> Decoder:
    """The decoder a configuration names: list of (B, C_l, h_l, w_l) → (B, W, h_0, w_0).

    Raises:
        UserError: its library is not installed.
    """
    if cfg.kind == "fpn":
        return FpnDecoder(channels, cfg.width)
    if cfg.kind == "aspp":
        return AsppDecoder(channels, strides, cfg.width)
    from ppar_dist.models import smp_decoders as smp  # late: it takes this module's parts

    kinds = {"upernet": smp.UperNetDecoder, "segformer": smp.SegformerDecoder, "dpt": smp.DptDecoder}
    return kinds[cfg.kind](channels, cfg.width)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm of at most 32 groups, each of at least 4 channels where the width allows."""
    return nn.GroupNorm(math.gcd(channels, min(32, max(1, channels // 4))), channels)


class Decoder(nn.Module):
    """Takes all levels (B, C_l, h_l, w_l), fine to coarse, and gives pixel features (B, W, h_0, w_0).

    Args:
        used: numbers of the levels that reach the output; others are neither computed nor trained.
    """

    def __init__(self, used: Iterable[int]) -> None:
        super().__init__()
        self.used = frozenset(used)


class FpnDecoder(Decoder):
    """FPN, then the levels summed from coarse to fine.

    No 1×1 convolution mixes the sum: projection and classifier are linear in it and would swallow it.
    """

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__(range(len(channels)))
        self.fpn = FeaturePyramidNetwork(list(channels), width, norm_layer=group_norm)

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        levels = list(self.fpn(OrderedDict((str(i), level) for i, level in enumerate(pyramid))).values())
        merged: Tensor = levels[-1].relu_()
        for level in reversed(levels[:-1]):
            merged = level.relu_() + resize_like(merged, level)
        return merged


class AsppDecoder(Decoder):
    """ASPP on the levels of stride 16 and coarser, joined with the finest level (DeepLabV3+)."""

    def __init__(self, channels: tuple[int, ...], strides: tuple[float, ...], width: int) -> None:
        limit = min(14.0, strides[-1])
        first = next(index for index, stride in enumerate(strides) if stride >= limit)
        super().__init__({0, *range(first, len(channels))})
        self.first = first
        self.aspp = without_batch_statistics(ASPP(sum(channels[self.first :]), [6, 12, 18], width))
        self.skip = nn.Conv2d(channels[0], width, 1)
        self.fuse = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False), group_norm(width), nn.ReLU(inplace=True)
        )

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        coarse = pyramid[self.first :]
        joined = torch.cat([coarse[0], *(resize_like(level, coarse[0]) for level in coarse[1:])], 1)
        fused: Tensor = self.fuse(self.skip(pyramid[0]) + resize_like(self.aspp(joined), pyramid[0]))
        return fused


def resize_like(features: Tensor, like: Tensor) -> Tensor:
    """Bilinear resizing to another map's grid."""
    return F.interpolate(features, like.shape[-2:], mode="bilinear", align_corners=False)


def without_batch_statistics(module: AnyModule) -> AnyModule:
    """Replace BatchNorm by GroupNorm and dropout by nothing, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, name, group_norm(child.num_features))
        elif isinstance(child, nn.Dropout):
            setattr(module, name, nn.Identity())
        else:
            without_batch_statistics(child)
    return module

"""Decoders of segmentation_models_pytorch: UPerNet, SegFormer's head and DPT's fusion.

BatchNorm becomes GroupNorm, as in the other decoders. DPT's convolutions work at the levels' own strides and
its last upsampling, to half the image's size, is left out: pixel features have the finest level's grid.

Letters: B images, C_l channels of level l (fine to coarse), W decoder width, (h_0, w_0) finest grid.
"""

from __future__ import annotations

from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ppar_dist.errors import UserError
from ppar_dist.models.decoder import Decoder, resize_like, without_batch_statistics

_PIXELS = 4  # of an image per cell of the finest level, as the library counts


class _LibraryDecoder(Decoder):
    """A decoder of the library as it is, but for its BatchNorm; ``width`` is W, by the library's name."""

    def __init__(self, kind: Any, channels: tuple[int, ...], **width: int) -> None:
        super().__init__(range(len(channels)))
        made = kind([3, 0, *channels], encoder_depth=len(channels) + 1, **width)
        self.head = without_batch_statistics(made)

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        found: Tensor = self.head(_with_finer(pyramid))
        return found


class UperNetDecoder(_LibraryDecoder):
    """UPerNet: pyramid pooling of the coarsest level, then an FPN; a convolution joins its levels."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__(_library().upernet.decoder.UPerNetDecoder, channels, decoder_channels=width)


class SegformerDecoder(_LibraryDecoder):
    """SegFormer's head: every level projected to W channels and resized, then joined by a 1×1 convolution."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__(_library().segformer.decoder.SegformerDecoder, channels, segmentation_channels=width)


class DptDecoder(Decoder):
    """DPT's fusion from coarse to fine by residual convolutions, without the readout of the class token."""

    def __init__(self, channels: tuple[int, ...], width: int) -> None:
        super().__init__(range(len(channels)))
        head = _library().dpt.decoder.DPTDecoder(
            encoder_out_channels=channels,
            encoder_output_strides=[_PIXELS << level for level in range(len(channels))],
            encoder_has_prefix_tokens=False,
            readout="ignore",
            intermediate_channels=channels,
            fusion_channels=width,
        )
        self.reassemble: nn.ModuleList = head.reassemble_blocks
        self.fusion: nn.ModuleList = without_batch_statistics(head.fusion_blocks)

    def forward(self, pyramid: list[Float[Tensor, "B _ _ _"]]) -> Float[Tensor, "B W h_0 w_0"]:
        """(B, C_l, h_l, w_l) fine to coarse → (B, W, h_0, w_0)."""
        levels = [block(level) for block, level in zip(self.reassemble, pyramid, strict=True)]
        coarsest, *rest = zip(self.fusion, reversed(levels), strict=True)
        merged = _fuse(coarsest[0], coarsest[1], None)
        for block, level in rest:
            merged = _fuse(block, level, merged)
        return merged


def _fuse(block: Any, level: Tensor, coarser: Tensor | None) -> Tensor:
    """One of DPT's fusion blocks; its 1×1 projection comes before the resizing, with which it commutes."""
    features: Tensor = block.residual_conv_block1(level)
    if coarser is not None:
        features = features + resize_like(coarser, features)
    fused: Tensor = block.project(block.residual_conv_block2(features))
    return fused


def _with_finer(pyramid: list[Tensor]) -> list[Tensor]:
    """The levels behind two maps without channels, of which the library reads the image's size alone."""
    finest = pyramid[0]
    size = (finest.shape[0], 0, _PIXELS * finest.shape[2], _PIXELS * finest.shape[3])
    return [finest.new_empty(size), finest.new_empty(size), *pyramid]


def _library() -> Any:
    try:
        from segmentation_models_pytorch import decoders  # late: an extra
    except ImportError:
        raise UserError(
            "model.decoder.kind upernet, segformer and dpt come from segmentation_models_pytorch, which is "
            "not installed; pip install 'ppar-dist[decoders]', or set model.decoder.kind to fpn or aspp"
        ) from None
    return decoders

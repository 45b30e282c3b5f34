"""What a backbone returns.

Letters: B images, C_l channels of level l, D width of the joint image-text space, (h, w) feature grid.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass
class Features:
    """Multi-level features of a batch and its dense features in the joint space."""

    pyramid: list[Float[Tensor, "B _ _ _"]]  # (B, C_l, h_l, w_l), fine to coarse; empty when not asked for
    dense: Float[Tensor, "B D h w"] | None  # not normalised; None when not asked for


@dataclass(frozen=True)
class FeatureShape:
    """What a backbone declares about its features; strides are pixels per cell."""

    channels: tuple[int, ...]  # C_l, fine to coarse
    strides: tuple[float, ...]  # of the levels, fine to coarse
    dense_stride: int
    embed_dim: int  # D
    multiple: int  # height and width are padded to a multiple of this


def ceil_div(number: int, divisor: int) -> int:
    """The quotient, rounded up, as an exported program can hold it for sizes that it does not know."""
    return -(-number // divisor)

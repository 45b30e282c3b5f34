"""Cells of a feature grid: their labels, unit features, class sums and cosines.

Letters: B images, K classes, D joint width, (h, w) grid, N = h·w cells, (H, W) pixels.
A reconstruction; see README, Method.

The unit features u = f / ‖f‖ are never written out: sums over cells and cosines both are matrix
products with f in which 1 / ‖f‖ scales the small factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor
from torch.autograd.function import once_differentiable

from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.models.losses import full_precision

_TINY = 1e-12  # squared norm below which a vector counts as zero


def inverse_norm(x: Float[Tensor, " ..."], dim: int) -> Float[Tensor, " ..."]:
    """1 / ‖x‖ along ``dim``, kept as an axis of length 1.

    A (near) zero vector gets 0, so that it normalises to zero and receives no gradient; dividing
    by a small epsilon instead would multiply its gradient by a million.
    """
    square = x.square().sum(dim, keepdim=True)
    zero = square <= _TINY
    root = torch.rsqrt(torch.where(zero, torch.ones_like(square), square))
    return torch.where(zero, torch.zeros_like(square), root)


def unit(x: Float[Tensor, "*shape"], dim: int = -1) -> Float[Tensor, "*shape"]:
    """x / ‖x‖ along ``dim``; zero vectors stay zero."""
    return x * inverse_norm(x, dim)


def grid_stride(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Pixels per cell (vertical, horizontal) of a grid that covers an image padded at its end.

    A stride s fits an axis when ceil(pixels / s) == cells. Both axes share one stride where they
    can; a power of two goes first (towers halve), then the smallest.

    Raises:
        ValueError: no whole stride gives that many cells.
    """
    fits = []
    for pixels, cells in zip(size, grid, strict=True):
        strides = [s for s in range(1, pixels + 1) if -(-pixels // s) == cells]
        if not strides:
            raise ValueError(
                f"a grid of {cells} cells does not tile {pixels} pixels with a whole stride; "
                "pad the image at its end to a multiple of the tower's stride"
            )
        fits.append(strides)
    shared = [s for s in fits[0] if s in fits[1]]
    vertical, horizontal = (shared, shared) if shared else fits
    return _preferred(vertical), _preferred(horizontal)


def _preferred(strides: list[int]) -> int:
    powers = [s for s in strides if s & (s - 1) == 0]
    return powers[0] if powers else strides[0]


def cells_to_pixels(cells: Float[Tensor, "B h w"], size: tuple[int, int]) -> Float[Tensor, "B H W"]:
    """The value of its cell for every pixel of an image of ``size`` (H, W)."""
    sy, sx = grid_stride(size, (cells.shape[1], cells.shape[2]))
    return cells.repeat_interleave(sy, 1).repeat_interleave(sx, 2)[:, : size[0], : size[1]]


def cell_labels(
    labels: Integer[Tensor, "B H W"], grid: tuple[int, int], num_classes: int, min_purity: float
) -> Int64[Tensor, "B h w"]:
    """Label of each cell: the class that covers at least ``min_purity`` of its pixels, else 255.

    Every pixel counts (the histogram of labels per cell, which is one strided pooling of one-hot
    labels). Pixels a border cell has beyond the image count as ignored. If two classes reach the
    share (only possible up to a half), the more frequent wins, then the lower id.

    Args:
        labels: class ids of any integer type; ids of K and above are ignored.
        grid: (h, w) of the features.
        num_classes: K.
        min_purity: share of a cell's pixels, above 0 and up to 1.
    """
    (batch, height, width), (h, w) = labels.shape, grid
    sy, sx = grid_stride((height, width), grid)
    device = labels.device
    # int32 indices into the (B, h, w, K + 1) histogram; the last bin takes what is ignored
    bins = num_classes + 1
    images = torch.arange(batch, dtype=torch.int32, device=device).view(-1, 1, 1) * (h * w * bins)
    rows = torch.arange(height, dtype=torch.int32, device=device).view(-1, 1) // sy * (w * bins)
    columns = torch.arange(width, dtype=torch.int32, device=device) // sx * bins
    index = (images + rows) + columns  # (B, H, W)
    index += labels.clamp(max=num_classes)
    counts = _histogram(index.flatten(), batch * h * w * bins)
    best, label = counts.view(batch, h, w, bins)[..., :num_classes].max(-1)
    # the slack keeps a share that is met exactly (0.7 of 10 pixels) from failing by rounding
    return torch.where(best >= min_purity * sy * sx - 1e-9, label, IGNORE_INDEX)


def _histogram(index: Integer[Tensor, " N"], size: int) -> Integer[Tensor, " size"]:
    """How often each of ``size`` numbers occurs; on a GPU without bincount, which waits for it twice."""
    if index.device.type == "cpu":
        return torch.bincount(index, minlength=size)
    counts = torch.zeros(size, dtype=torch.int32, device=index.device)
    return counts.scatter_add_(0, index.long(), torch.ones_like(index, dtype=torch.int32))


class _UnitProducts(torch.autograd.Function):
    """Class sums of unit features and their cosines to prototypes, without the unit features.

    With A = ∂loss/∂u, u = f / ‖f‖:  ∂loss/∂f = (A - u (u·A)) / ‖f‖. A is one product of the two
    incoming gradients, and u·A needs only the (B, K, N) products, so that the backward pass writes
    a single (B, D, N) tensor; autograd's own would write six.
    """

    @staticmethod
    def forward(
        ctx: Any, features: Tensor, one_hot: Tensor, prototypes: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Sums (B, K, D) over the N cells of each class, and cosines (B, K, N) if there are prototypes."""
        inverse = inverse_norm(features, 1)  # (B, 1, N)
        sums = (one_hot * inverse) @ features.transpose(1, 2)  # (B, K, D)
        dots = None if prototypes is None else prototypes @ features  # (B, K, N)
        ctx.save_for_backward(features, one_hot, prototypes, inverse, dots)
        ctx.set_materialize_grads(False)
        return sums, None if dots is None else dots * inverse

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_sums: Tensor | None, d_cosines: Tensor | None
    ) -> tuple[Tensor | None, None, None]:
        """Gradient of the features (B, D, N); the others have none."""
        features, one_hot, prototypes, inverse, dots = ctx.saved_tensors
        left, right, radial = [], [], torch.zeros_like(inverse)  # radial: f·A, (B, 1, N)
        if d_sums is not None:
            left.append(d_sums.transpose(1, 2))  # (B, D, K)
            right.append(one_hot)
            radial = radial + (one_hot * (d_sums @ features)).sum(1, keepdim=True)
        if d_cosines is not None:
            left.append(prototypes.t().expand(len(features), -1, -1))  # (B, D, K)
            right.append(d_cosines)
            radial = radial + (d_cosines * dots).sum(1, keepdim=True)
        if not left:
            return None, None, None
        gradient = torch.bmm(torch.cat(left, 2), torch.cat(right, 1) * inverse)  # (B, D, N): A / ‖f‖
        return gradient.addcmul_(features, radial * inverse**3, value=-1), None, None


@dataclass(frozen=True)
class CellFeatures:
    """What a grid of features gives: sums per class, and cosines to prototypes."""

    labels: Int64[Tensor, "B N"]  # 255 is ignored
    counts: Float[Tensor, "B K"]  # labelled cells per class
    sums: Float[Tensor, "B K D"]  # of unit features
    cosines: Float[Tensor, "B K N"] | None  # to the prototypes, if there were any

    @property
    def present(self) -> Bool[Tensor, "B K"]:
        """The classes an image has."""
        return self.counts > 0


def pool(sums: Float[Tensor, "B K D"]) -> Float[Tensor, "B K D"]:
    """Mean unit feature of each class, renormalised; zero rows for absent classes."""
    return unit(sums)  # the mean has the direction of the sum


def cell_features(
    dense: Float[Tensor, "B D h w"],
    cells: Int64[Tensor, "B h w"],
    num_classes: int,
    prototypes: Float[Tensor, "K D"] | None = None,
) -> CellFeatures:
    """Products of the unit features of dense features labelled by cells.

    Works in float32 (float64 stays), because norms and sums over cells lose too much in bf16.
    ``prototypes``, unit rows, get no gradient.
    """
    features = full_precision(dense).flatten(2)  # (B, D, N)
    labels = cells.flatten(1)  # (B, N)
    classes = torch.arange(num_classes, device=cells.device).view(1, -1, 1)
    one_hot = (labels.unsqueeze(1) == classes).to(features.dtype)  # (B, K, N)
    counts = one_hot.sum(2)
    sums, cosines = _UnitProducts.apply(features, one_hot, prototypes)
    return CellFeatures(labels, counts, sums, cosines)


def valid_cells(cells: Int64[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """Mask of the cells that carry a class."""
    return cells != IGNORE_INDEX

"""Weights of cells by the reliability that judges give their labels, and their moving means.

Ours, not the paper's; see docs/method.md, "Cell weights".

Letters: B images, M domains, K classes, (h, w) grid, N = h·w cells, (H, W) pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppar_dist.config.schema import CellWeightsConfig
from ppar_dist.models.losses import masked_mean
from ppar_dist.ppar.cells import cells_to_pixels


@dataclass(frozen=True)
class CellWeights:
    """Weights of the cells of a micro-batch."""

    cells: Float[Tensor, "B h w"]  # above 0 and up to 1, which is full trust

    def pixels(self, size: tuple[int, int]) -> Float[Tensor, "B H W"]:
        """The weight of its cell for every pixel of an image of ``size`` (H, W)."""
        return cells_to_pixels(self.cells, size)


def raw_weights(r: Float[Tensor, "*shape"], config: CellWeightsConfig) -> Float[Tensor, "*shape"]:
    """w = max(exp(γ min(0, r + δ)), min).

    Within the tolerance δ a label is trusted in full: the hard cells of a clean source are what an unseen
    domain needs most.

    They are not divided by their mean: AdamW does not see the scale of a loss, and where judges are young a
    small mean would give the few cells that they agree with ten times their weight.
    """
    return (config.gamma * (r + config.tolerance).clamp_max(0.0)).exp().clamp_min(config.min)


def fill_in(raw: Float[Tensor, "B N"], judged: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Weights of all cells: those that nobody can judge take the mean of their image, or 1."""
    mean = torch.where(judged.any(1), masked_mean(raw, judged), 1.0)  # (B,)
    return torch.where(judged, raw, mean.unsqueeze(1))


def by_class(
    weights: Float[Tensor, "B N"], labels: Int64[Tensor, "B N"], num_classes: int
) -> Float[Tensor, "B K 2"]:
    """Sums of weights and numbers of cells per class; labels of K and above do not count."""
    member = F.one_hot(labels.clamp(max=num_classes), num_classes + 1)[..., :num_classes].to(weights.dtype)
    return torch.stack([(member * weights.unsqueeze(-1)).sum(1), member.sum(1)], -1)


class MovingWeights:
    """Moving sums of weights and counts of judged cells, per domain and class.

    Where a batch has no judged cell of a class of a domain, its sums keep their value.
    """

    def __init__(self, domains: int, classes: int, momentum: float) -> None:
        """Empty sums: M = ``domains``, K = ``classes``."""
        self.momentum = momentum
        self.sums = torch.zeros(domains, classes, 2, dtype=torch.float64)  # Σw, n

    def fold(self, sums: Float[Tensor, "M K 2"]) -> None:
        """Add the sums of a global batch."""
        rate = (1.0 - self.momentum) * (sums[..., 1:] > 0).double()
        self.sums = self.sums + rate * (sums.double().cpu() - self.sums)

    def table(self) -> Sequence[Sequence[float]]:
        """(M, K) mean weights, nan where nothing was judged."""
        table: list[list[float]] = (self.sums[..., 0] / self.sums[..., 1]).tolist()
        return table

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

_LARGEST = 2.0  # weight of a cell


@dataclass(frozen=True)
class CellWeights:
    """Weights of the cells of a micro-batch."""

    cells: Float[Tensor, "B h w"]  # mean about 1 over the cells of a class

    def pixels(self, size: tuple[int, int]) -> Float[Tensor, "B H W"]:
        """The weight of its cell for every pixel of an image of ``size`` (H, W)."""
        return cells_to_pixels(self.cells, size)


def raw_weights(r: Float[Tensor, "*shape"], config: CellWeightsConfig) -> Float[Tensor, "*shape"]:
    """u = max(exp(γ min(0, r + δ)), min).

    Within the tolerance δ a label is trusted in full: the hard cells of a clean source are what an unseen
    domain needs most.
    """
    return (config.gamma * (r + config.tolerance).clamp_max(0.0)).exp().clamp_min(config.min)


def relative_weights(
    raw: Float[Tensor, "B N"],
    labels: Int64[Tensor, "B N"],
    judged: Bool[Tensor, "B N"],
    class_means: Float[Tensor, " K"],
) -> Float[Tensor, "B N"]:
    """w = min(u / ū_y, 2): trust relative to that in all cells of the label y.

    So no class is silenced because judges find it hard: trust moves between the cells of a class. Cells that
    nobody can judge take the mean of their image, or 1.

    Args:
        raw: u.
        labels: y.
        judged: cells that have a u.
        class_means: ū.
    """
    own = class_means[labels.clamp(max=len(class_means) - 1)]
    weights = (raw / own).clamp_max(_LARGEST)
    mean = torch.where(judged.any(1), masked_mean(weights, judged), 1.0)  # (B,)
    return torch.where(judged, weights, mean.unsqueeze(1))


def by_class(
    weights: Float[Tensor, "B N"], labels: Int64[Tensor, "B N"], num_classes: int
) -> Float[Tensor, "B K 2"]:
    """Sums of weights and numbers of cells per class; labels of K and above do not count."""
    member = F.one_hot(labels.clamp(max=num_classes), num_classes + 1)[..., :num_classes].to(weights.dtype)
    return torch.stack([(member * weights.unsqueeze(-1)).sum(1), member.sum(1)], -1)


class MovingWeights:
    """Moving sums of raw weights and counts of judged cells, per domain and class.

    Where a batch has no judged cell of a class of a domain, its sums keep their value.
    """

    def __init__(self, domains: int, classes: int, momentum: float) -> None:
        """Empty sums: M = ``domains``, K = ``classes``."""
        self.momentum = momentum
        self.sums = torch.zeros(domains, classes, 2, dtype=torch.float64)  # Σu, n

    def fold(self, sums: Float[Tensor, "M K 2"]) -> None:
        """Add the sums of a global batch."""
        rate = (1.0 - self.momentum) * (sums[..., 1:] > 0).double()
        self.sums = self.sums + rate * (sums.double().cpu() - self.sums)

    def class_means(self) -> Float[Tensor, " K"]:
        """ū by class over all domains, 1 where nothing was judged."""
        total, number = self.sums.sum(0).unbind(-1)  # (K,)
        return torch.where(number > 0, total / number.clamp_min(1e-12), 1.0).float()

    def table(self) -> Sequence[Sequence[float]]:
        """(M, K) mean raw weights, nan where nothing was judged."""
        table: list[list[float]] = (self.sums[..., 0] / self.sums[..., 1]).tolist()
        return table

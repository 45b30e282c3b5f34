"""Weights of cells: the labels of a domain, judged by the prototypes of the other domains.

A domain cannot vouch for itself: a network learns the labelling habits of each of its sources and then
finds them reliable. Ours, not the paper's; see docs/method.md, "Cell weights".

Letters: B images, M domains, K classes, D joint width, (h, w) grid, N = h·w cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppar_dist.config.schema import CellWeightsConfig
from ppar_dist.models.losses import masked_mean
from ppar_dist.ppar.cells import cells_to_pixels, inverse_norm, unit, valid_cells


@dataclass(frozen=True)
class CellWeights:
    """Weights of the cells of a micro-batch."""

    cells: Float[Tensor, "B h w"]  # above 0 and up to 1, which is full trust

    def pixels(self, size: tuple[int, int]) -> Float[Tensor, "B H W"]:
        """The weight of its cell for every pixel of an image of ``size`` (H, W)."""
        return cells_to_pixels(self.cells, size)


@dataclass(frozen=True)
class Judges:
    """What the other domains say about each domain's classes."""

    prototypes: Float[Tensor, "M K D"]  # unit rows
    known: Bool[Tensor, "M K"]  # another domain has the class


def leave_one_out(
    text: Float[Tensor, "K D"],
    centroids: Float[Tensor, "M K D"],
    seen: Bool[Tensor, "M K"],
    share: float,
) -> Judges:
    """v_mk = norm((1 - a) t_k + a norm(mean over the domains n ≠ m that have k of c_nk)).

    Args:
        text: unit rows t.
        centroids: unit centroids c of the bank, zero where not seen.
        seen: which domain has which class.
        share: a, of the visual part, 0 to 1.
    """
    others = seen.sum(0) - seen.to(torch.int64)  # (M, K) other domains that have the class
    means = (centroids.sum(0) - centroids) / others.clamp_min(1).unsqueeze(-1)
    return Judges(unit((1.0 - share) * text + share * unit(means)), others > 0)


def reliability(
    dense: Float[Tensor, "B D N"],
    labels: Int64[Tensor, "B N"],
    domains: Int64[Tensor, " B"],
    judges: Judges,
    temperature: float,
) -> tuple[Float[Tensor, "B N"], Bool[Tensor, "B N"]]:
    """r = log p_y - max_k log p_k = (cos(f, v_my) - max_k cos(f, v_mk)) / τ, for a cell f with label y.

    The largest is taken over the classes that another domain has.

    Args:
        dense: features, not normalised.
        labels: 255 is ignored.
        domains: of the images, m.
        judges: prototypes v.
        temperature: τ.

    Returns:
        r in nats, at most 0, and 0 where nobody can judge; which cells are judged.
    """
    cosines = judges.prototypes[domains] @ dense * inverse_norm(dense, 1)  # (B, K, N)
    known = judges.known[domains]  # (B, K)
    best = cosines.masked_fill(~known.unsqueeze(-1), -torch.inf).amax(1)
    place = labels.clamp(max=cosines.shape[1] - 1).unsqueeze(1)
    judged = valid_cells(labels) & known.unsqueeze(-1).expand_as(cosines).gather(1, place)[:, 0]
    r = (cosines.gather(1, place)[:, 0] - best) / temperature
    return torch.where(judged, r, torch.zeros_like(r)), judged


def raw_weights(r: Float[Tensor, "*shape"], config: CellWeightsConfig) -> Float[Tensor, "*shape"]:
    """w = max(exp(γ r), min).

    They are not divided by their mean: AdamW does not see the scale of a loss, and where prototypes are
    young a small mean would give the few cells that agree with them ten times their weight.
    """
    return (config.gamma * r).exp().clamp_min(config.min)


def fill_in(raw: Float[Tensor, "B N"], judged: Bool[Tensor, "B N"]) -> Float[Tensor, "B N"]:
    """Weights of all cells: those that nobody can judge take the mean of their image, or 1."""
    mean = torch.where(judged.any(1), masked_mean(raw, judged), 1.0)  # (B,)
    return torch.where(judged, raw, mean.unsqueeze(1))


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

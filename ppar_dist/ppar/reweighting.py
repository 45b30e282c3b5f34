"""Weights of source samples from how well their classes agree with the prototypes.

Letters: B images, K classes, D joint width. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppar_dist.config.method_section import ReweightingConfig
from ppar_dist.ppar.alignment import pooled_alignment

# Upper edges of the weight histogram (Prometheus "le"); weights above the last go to one more bin.
WEIGHT_EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)


def reliability(
    pooled: Float[Tensor, "B K D"],
    present: Bool[Tensor, "B K"],
    prototypes: Float[Tensor, "K D"],
    temperature: float,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """r_i = mean over the image's classes of log p(class | pooled feature, prototypes).

    Arguments as `pooled_alignment`, whose negative this is.

    Returns:
        r in nats, 0 where the image has no class; which images have one.
    """
    loss, valid = pooled_alignment(pooled, present, prototypes, temperature)
    return -loss, valid


def raw_weights(
    r: Float[Tensor, "*shape"], mean: float, spread: float, config: ReweightingConfig
) -> Float[Tensor, "*shape"]:
    """u_i = clip(exp(β (r_i - r̄) / max(σ_r, σ_min)), min, max) for reliabilities of any shape.

    The floor σ_min keeps weights near 1 where reliabilities hardly differ: a source without harmful
    samples has a small σ_r, and its hard samples are what an unseen domain needs most.
    """
    score = config.beta * (r - mean) / max(spread, config.min_spread)
    return score.exp().clamp(config.min, config.max)  # exp may reach inf; the clip takes it back


def effective_sample_size(total: float, squares: float) -> float:
    """(Σw)² / Σw²: the number of samples when weights are equal, 1 when one has it all; 0 of none."""
    return total * total / squares if squares else 0.0


def weight_histogram(weights: Float[Tensor, " B"]) -> Int64[Tensor, "B bins"]:
    """One-hot of the bin of each weight, one bin more than ``WEIGHT_EDGES``."""
    above = [weights > edge for edge in WEIGHT_EDGES]  # a tensor of edges would be a transfer to the GPU
    return torch.nn.functional.one_hot(torch.stack(above).sum(0), len(WEIGHT_EDGES) + 1)


@dataclass(frozen=True)
class Moments:
    """Statistics frozen for a step: r̄, σ_r (nats) and w̄; None while nothing was seen."""

    mean: float | None = None
    spread: float | None = None
    mean_weight: float | None = None


class MovingMoments:
    """Moving sums of reliabilities and raw weights over global batches; sums first, then divided.

    ``sums`` holds Σr, Σr², n_r, Σu, n_u. A batch without a valid sample changes nothing.
    """

    def __init__(self, momentum: float) -> None:
        """Empty statistics."""
        self.momentum = momentum
        self.sums = [0.0] * 5

    def fold(self, r: float, r_square: float, n_r: float, u: float, n_u: float) -> None:
        """Add the sums of a global batch."""
        for start, new in ((0, (r, r_square, n_r)), (3, (u, n_u))):
            if new[-1] > 0:
                for offset, value in enumerate(new):
                    old = self.sums[start + offset]
                    self.sums[start + offset] = self.momentum * old + (1 - self.momentum) * value

    def moments(self) -> Moments:
        """r̄ = Σr / n, σ_r = √(Σr² / n - r̄²), w̄ = Σu / n_u."""
        r, r_square, n_r, u, n_u = self.sums
        if n_r <= 0:
            return Moments()
        mean = r / n_r
        spread = math.sqrt(max(0.0, r_square / n_r - mean * mean))
        return Moments(mean, spread, u / n_u if n_u > 0 else None)

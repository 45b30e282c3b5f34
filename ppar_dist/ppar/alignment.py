"""Progressive alignment, easy to difficult: stages, losses and the admission of cells.

Letters: B images, K classes, D joint width, N cells. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppar_dist.config.method_section import AlignmentConfig
from ppar_dist.models.losses import masked_mean


class Stage(IntEnum):
    """What is aligned, and to which prototypes."""

    WARMUP = 0  # nothing: segmentation only, the bank fills
    TEXT = 1  # pooled class features to the original text prototypes
    VISUAL_TEXT = 2  # pooled class features to the visual text prototypes
    PIXEL = 3  # cells to the visual text prototypes, the easiest first


@dataclass(frozen=True)
class Term:
    """A loss of one kind, per image, and its weight in the total."""

    weight: float  # λ
    value: Float[Tensor, " B"]  # unweighted, 0 where not present
    present: Bool[Tensor, " B"]  # images that have it


def stage_at(progress: float, boundaries: Sequence[float]) -> Stage:
    """Stage at a progress from 0 to 1: a pure function, so it is equal on all ranks."""
    return Stage(sum(progress >= boundary for boundary in boundaries))


def next_stage(step: int, total: int, boundaries: Sequence[float]) -> tuple[Stage, int] | None:
    """The stage after that of ``step``, and its first step, both counted from 0; None after the last."""
    now = stage_at(step / total, boundaries)
    for boundary in boundaries[now:]:
        first = round(boundary * total)
        first += first / total < boundary  # as `stage_at` compares, to the last bit
        first -= (first - 1) / total >= boundary
        if first < total:
            return stage_at(first / total, boundaries), first
    return None


def stage_weights(stage: Stage, config: AlignmentConfig) -> tuple[float, float, float]:
    """λ of the text, visual-text and pixel losses; 0 is off."""
    weights = (config.text_weight, config.visual_weight, config.pixel_weight)
    first = 1 if config.keep_earlier else int(stage)
    on = [config.enabled and first <= number <= stage for number in (1, 2, 3)]
    text, visual, pixel = (weight if flag else 0.0 for weight, flag in zip(weights, on, strict=True))
    return text, visual, pixel


def admission_quantile(progress: float, start: float, admit_from: float) -> float:
    """Quantile q of difficulty below which cells are admitted.

    Grows linearly from ``admit_from`` at progress ``start`` to 1 at progress 1.
    """
    if progress >= 1.0 or start >= 1.0:
        return 1.0
    share = max(0.0, progress - start) / (1.0 - start)
    return admit_from + (1.0 - admit_from) * share


def pooled_alignment(
    pooled: Float[Tensor, "B K D"],
    present: Bool[Tensor, "B K"],
    prototypes: Float[Tensor, "K D"],
    temperature: float,
) -> tuple[Float[Tensor, " B"], Bool[Tensor, " B"]]:
    """Cross-entropy of cos / τ between pooled class features and prototypes.

    Args:
        pooled: unit rows.
        present: the classes an image has.
        prototypes: unit rows.
        temperature: τ.

    Returns:
        loss, the mean over the image's classes and 0 without any; which images have a class.
    """
    logits = pooled @ prototypes.t() / temperature  # (B, K, K): feature of class, prototype
    own = torch.log_softmax(logits, dim=2).diagonal(dim1=1, dim2=2)  # (B, K)
    return masked_mean(-own, present), present.any(1)


def difficulty(cross_entropy: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """1 - p(label) from -log p, without the rounding of 1 - exp(x) near 0."""
    return -torch.expm1(-cross_entropy)


def difficulty_histogram(
    values: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], bins: int
) -> Float[Tensor, " bins"]:
    """Counts of ``values`` in [0, 1] where ``mask`` holds, in equal bins."""
    index = (values * bins).long().clamp_(0, bins - 1).masked_fill_(~mask, bins).flatten()
    counts = torch.zeros(bins + 1, dtype=torch.float32, device=values.device)
    return counts.scatter_add_(0, index, torch.ones_like(index, dtype=torch.float32))[:bins]


def histogram_quantile(counts: Sequence[float], edges: Sequence[float], q: float) -> float:
    """The q-th quantile of a histogram, linear inside the bin; nan when it is empty.

    Args:
        counts: one weight per bin.
        edges: rising, one more than bins.
        q: 0 to 1.
    """
    total = math.fsum(counts)
    target, below, top = q * total, 0.0, math.nan
    if total <= 0:
        return math.nan
    for count, low, high in zip(counts, edges, edges[1:], strict=False):
        if count <= 0:
            continue
        if below + count >= target:
            return low + (target - below) / count * (high - low)
        below, top = below + count, high
    return top  # only by rounding of the running sum


class DifficultyHistogram:
    """Moving histogram of the difficulty of cells over global batches."""

    def __init__(self, bins: int, momentum: float = 0.9) -> None:
        """An empty histogram over [0, 1]; moving, because one batch is too small for a steady quantile."""
        self.momentum = momentum
        self.counts = [0.0] * bins
        self.edges = [number / bins for number in range(bins + 1)]

    def fold(self, counts: Sequence[float]) -> None:
        """Add the counts of a global batch; a batch without cells changes nothing."""
        if sum(counts) > 0:
            pairs = zip(self.counts, counts, strict=True)
            self.counts = [self.momentum * old + (1 - self.momentum) * new for old, new in pairs]

    def threshold(self, q: float) -> float:
        """Difficulty up to which cells are admitted; 1 (all) at q = 1; nan (none) while empty."""
        quantile = histogram_quantile(self.counts, self.edges, q)
        # difficulties not seen yet are past the last bin that has cells: q = 1 means them too
        return 1.0 if q >= 1.0 and not math.isnan(quantile) else quantile


def admitted_cells(
    values: Float[Tensor, "B N"], mask: Bool[Tensor, "B N"], threshold: float
) -> Bool[Tensor, "B N"]:
    """Valid cells whose difficulty is at most the threshold (nan admits none)."""
    return mask & (values <= threshold)

"""What the theory of domain generalisation watches, and the figures of a step.

Letters: M domains, K classes, D joint width. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ppar_dist.ppar.alignment import histogram_quantile
from ppar_dist.ppar.reweighting import WEIGHT_EDGES


def domain_discrepancy(centroids: Float[Tensor, "M K D"], seen: Bool[Tensor, "M K"]) -> Float[Tensor, ""]:
    """Largest distance between two domains' unit centroids of a class, averaged over classes.

    Args:
        centroids: unit rows.
        seen: a class counts when two domains or more have seen it.

    Returns:
        0 to 2; nan when no class is shared.
    """
    distance = torch.cdist(
        centroids.transpose(0, 1), centroids.transpose(0, 1), compute_mode="donot_use_mm_for_euclid_dist"
    )  # (K, M, M)
    both = seen.t().unsqueeze(1) & seen.t().unsqueeze(2)  # (K, M, M)
    largest = torch.where(both, distance, 0.0).amax((1, 2))
    shared = seen.sum(0) >= 2
    return torch.where(shared, largest, 0.0).sum() / shared.sum()  # 0 / 0 is nan


def prototype_text_similarity(
    prototypes: Float[Tensor, "K D"], text: Float[Tensor, "K D"]
) -> Float[Tensor, " K"]:
    """Cosines of visual text prototypes and original text prototypes, unit rows."""
    return (prototypes * text).sum(1)


def prototype_drift(prototypes: Float[Tensor, "K D"], before: Float[Tensor, "K D"]) -> Float[Tensor, " K"]:
    """Distances ‖v_k - v_k before‖ that prototypes moved in one step."""
    drift: Tensor = (prototypes - before).norm(dim=1)
    return drift


@dataclass(frozen=True)
class Detail:
    """Figures worth their cost at logging steps only."""

    domain_discrepancy: float
    prototype_text_similarity: list[float]  # (K,)
    prototype_drift: list[float]  # (K,), of the last step
    cells_total: list[list[float]]  # (M, K), cumulative
    prototype_checksum: int  # equal on all ranks, or something is wrong
    trust: list[list[float]] | None = None  # (M, K) in the labels


@dataclass(frozen=True)
class Figures:
    """Figures of one global batch. None or nan stands for a mean over nothing."""

    finite: bool  # False: a nan or inf was reduced and this batch was not folded into the state
    stage: int
    loss: dict[str, float]  # total, segmentation, text, visual_text, pixel
    samples: list[int]  # (M,)
    quantile: float  # of difficulty, up to which cells are admitted; nan outside the pixel stage
    threshold: float  # the difficulty at that quantile
    admitted_ratio: float  # of labelled cells; nan outside the pixel stage
    ess_ratio: float  # effective over actual number of samples
    weight_mean: list[float]  # (M,)
    weight_std: float
    weight_sum: list[float]  # (M,)
    weight_histogram: list[list[int]]  # (M, E + 1) counts between WEIGHT_EDGES
    risk: list[float]  # (M,) weighted source risk Σ w CE / Σ w
    reliability: list[float]  # (M,) mean r in nats
    sample_weights: list[float]  # (G,) of the global batch, in its order
    sample_reliability: list[float]  # (G,) in nats, nan where an image has no class
    sample_attempts: list[int]  # (G,) bad samples that each one stands for
    shared_counts: dict[str, Tensor] = field(default_factory=dict)  # what the trainer sums besides; float64
    detail: Detail | None = None

    def weight_quantile(self, domain: int, q: float) -> float:
        """q-th quantile of a domain's weights in this batch, from the histogram; nan without any."""
        edges = (0.0, *WEIGHT_EDGES, WEIGHT_EDGES[-1])  # the open bin counts as its lower edge
        return histogram_quantile(self.weight_histogram[domain], edges, q)

    def flat(self) -> dict[str, float]:
        """`named` with numbers for names."""
        classes = len(self.detail.prototype_drift) if self.detail else 0
        return self.named([str(m) for m in range(len(self.samples))], [str(k) for k in range(classes)])

    def named(self, domains: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
        """Numbers for a JSON line, as ``risk/<domain>``; means over nothing (nan) are left out.

        ``loss/...`` is always kept, because a nan there says that training broke.
        """
        values: dict[str, float] = {
            "stage": self.stage,
            "quantile": self.quantile,
            "threshold": self.threshold,
            "admitted_ratio": self.admitted_ratio,
            "ess_ratio": self.ess_ratio,
            "weight/std": self.weight_std,
        }
        for name, column in (
            ("samples", self.samples),
            ("weight/mean", self.weight_mean),
            ("risk", self.risk),
            ("reliability", self.reliability),
        ):
            values |= _by_name(name, domains, column)
        if self.detail:
            values |= _detail_by_name(self.detail, domains, classes)
        kept = {name: value for name, value in values.items() if not math.isnan(value)}
        return {f"loss/{name}": value for name, value in self.loss.items()} | kept


def _by_name(name: str, keys: Sequence[str], column: Sequence[float]) -> dict[str, float]:
    return {f"{name}/{key}": value for key, value in zip(keys, column, strict=True)}


def _detail_by_name(detail: Detail, domains: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    values = {"domain_discrepancy": detail.domain_discrepancy}
    values |= _by_name("prototype_text_similarity", classes, detail.prototype_text_similarity)
    values |= _by_name("prototype_drift", classes, detail.prototype_drift)
    for domain, row in zip(domains, detail.cells_total, strict=True):
        values |= _by_name(f"cells_total/{domain}", classes, row)
    for domain, trust in zip(domains, detail.trust or (), strict=False):
        values |= _by_name(f"trust/{domain}", classes, trust)
    return values

"""Sums of a batch per domain, and the figures that the reduced sums give.

Ranks add sums and counts, and divide only afterwards: an average of averages would weigh ranks,
not images. Letters: B images, M domains, G images of the global batch. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

import torch
from jaxtyping import Bool, Float, Int64, Num
from torch import Tensor

from ppar_dist.ppar import reweighting
from ppar_dist.ppar.alignment import Term
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.step_settings import StepSettings
from ppar_dist.ppar.sync import SyncBuffer

ALIGNED = ("text", "visual_text", "pixel")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Sums(Generic[_T]):
    """Sums over images: one per domain, or over all domains. r and u count images with a class only."""

    n: _T
    w: _T
    w_square: _T
    w_ce: _T
    ce: _T
    r: _T
    r_square: _T
    n_r: _T
    u: _T
    n_u: _T


@dataclass(frozen=True)
class Sample(Generic[_T]):
    """What the buffer holds of each image of the global batch."""

    weight: _T
    reliability: _T
    has_reliability: _T
    attempts: _T


@dataclass(frozen=True)
class BatchStatistics:
    """What a micro-batch adds, one value per image."""

    domains: Int64[Tensor, " B"]
    seg_loss: Float[Tensor, " B"]
    total: Float[Tensor, " B"]
    weights: Float[Tensor, " B"]
    reliability: Float[Tensor, " B"]  # 0 where not valid
    valid: Bool[Tensor, " B"]  # has a class
    u: Float[Tensor, " B"]  # raw weight, 0 where unknown
    u_known: Bool[Tensor, " B"]
    batch_slots: Int64[Tensor, " B"] | None  # place in the global batch
    attempts: Int64[Tensor, " B"] | None = None  # bad samples that this one stands for


def layout(domains: int, global_batch: int) -> dict[str, tuple[int, ...]]:
    """Entries of the buffer that `collect` fills, with their shapes."""
    return {
        "domains": (domains, len(fields(Sums))),
        "weights": (domains, len(reweighting.WEIGHT_EDGES) + 1),
        "losses": (len(ALIGNED), 2),  # Σ over images, number of images that have the term
        "total": (1,),
        "samples": (global_batch, len(fields(Sample))),  # each row is filled by one rank, so Σ gathers
    }


def by_domain(
    domains: Int64[Tensor, " B"], values: Num[Tensor, " B *rest"], num_domains: int
) -> Float[Tensor, " M *rest"]:
    """Sums over the images of each domain, in float32.

    In float64, where GPUs use no TF32, and in a fixed order, unlike a scattered sum.
    """
    member = torch.nn.functional.one_hot(domains, num_domains).t().double()  # (M, B)
    return (member @ values.flatten(1).double()).view(-1, *values.shape[1:]).float()


@torch.no_grad()
def collect(buffer: SyncBuffer, batch: BatchStatistics, terms: Mapping[str, Term]) -> None:
    """Add a micro-batch and its loss terms to the buffer."""
    w, ce, r = batch.weights, batch.seg_loss.float(), batch.reliability
    table = _columns(
        Sums(
            n=torch.ones_like(w),
            w=w,
            w_square=w**2,
            w_ce=w * ce,
            ce=ce,
            r=r,
            r_square=r**2,
            n_r=batch.valid,
            u=batch.u,
            n_u=batch.u_known,
        )
    )
    num_domains = buffer.layout["domains"][0]
    buffer.add("domains", by_domain(batch.domains, table, num_domains))
    buffer.add("weights", by_domain(batch.domains, reweighting.weight_histogram(w), num_domains))
    buffer.add("total", batch.total.sum().view(1))
    if batch.batch_slots is not None:
        attempts = torch.zeros_like(w) if batch.attempts is None else batch.attempts.to(w)
        rows = _columns(Sample(weight=w, reliability=r, has_reliability=batch.valid, attempts=attempts))
        buffer.view("samples")[batch.batch_slots] = rows
    sums = buffer.view("losses")
    for name, term in terms.items():
        sums[ALIGNED.index(name)] += torch.stack([term.value.sum(), term.present.sum().float()])


def _columns(values: Sums[Tensor] | Sample[Tensor]) -> Tensor:
    """(B, fields) of fields (B,), in their order."""
    return torch.stack([getattr(values, field.name).float() for field in fields(values)], 1)


def overall(buffer: SyncBuffer, head: Float[Tensor, " front"]) -> Sums[float]:
    """Sums over all domains, from the reduced front part of the buffer."""
    return Sums(*buffer.view("domains", head).sum(0).tolist())


def figures(
    buffer: SyncBuffer,
    head: Float[Tensor, " front"],
    settings: StepSettings,
    finite: bool,
    shared_counts: dict[str, Tensor],
    detail: Detail | None,
) -> Figures:
    """Figures of the global batch from the reduced front part of the buffer.

    Args:
        buffer: gives the layout.
        head: float64 copy of the front part, on the CPU.
        settings: of the step.
        finite: whether the buffer was folded.
        shared_counts: what the ranks counted besides.
        detail: the expensive figures, or None.
    """
    domains: Sums[Tensor] = Sums(*buffer.view("domains", head).t())  # (M,) each
    sums = overall(buffer, head)
    mean = sums.w / sums.n
    sample: Sample[Tensor] = Sample(*buffer.view("samples", head).t())  # (G,) each
    return Figures(
        finite=finite,
        stage=int(settings.stage),
        loss=_losses(buffer, head, sums),
        samples=[round(count) if math.isfinite(count) else 0 for count in domains.n.tolist()],
        quantile=settings.quantile,
        threshold=settings.threshold,
        admitted_ratio=_admitted_ratio(buffer, head),
        ess_ratio=reweighting.effective_sample_size(sums.w, sums.w_square) / sums.n,
        weight_mean=(domains.w / domains.n).tolist(),  # 0 / 0 is nan: no image
        weight_std=math.sqrt(max(0.0, sums.w_square / sums.n - mean * mean)),
        weight_sum=domains.w.tolist(),
        weight_histogram=buffer.view("weights", head).int().tolist(),
        risk=(domains.w_ce / domains.w).tolist(),
        reliability=(domains.r / domains.n_r).tolist(),
        sample_weights=sample.weight.tolist(),
        sample_reliability=torch.where(sample.has_reliability > 0, sample.reliability, math.nan).tolist(),
        sample_attempts=[round(count) for count in sample.attempts.tolist()],
        shared_counts=shared_counts,
        detail=detail,
    )


def _losses(buffer: SyncBuffer, head: Tensor, sums: Sums[float]) -> dict[str, float]:
    """Means by term; those that no image has are left out."""
    means = {"total": float(buffer.view("total", head)) / sums.n, "segmentation": sums.ce / sums.n}
    for name, (value, count) in zip(ALIGNED, buffer.view("losses", head).tolist(), strict=True):
        if count:
            means[name] = value / count
    return means


def _admitted_ratio(buffer: SyncBuffer, head: Tensor) -> float:
    """Admitted cells of the labelled ones; nan where none was asked."""
    if "admission" not in buffer.layout:
        return math.nan
    admitted, labelled = buffer.view("admission", head).tolist()
    return admitted / labelled if labelled else math.nan

"""Sums of a batch per domain, and the figures that the reduced sums give.

Ranks add sums and counts, and divide only afterwards: an average of averages would weigh ranks,
not images. Letters: B images, M domains. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ppar_dist.ppar import reweighting
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.sync import SyncBuffer

# Sums over the images of a domain; r and u only over images with a class.
COLUMNS = ("n", "w", "w_square", "w_ce", "ce", "r", "r_square", "n_r", "u", "n_u")
ALIGNED = ("text", "visual_text", "pixel")


@dataclass(frozen=True)
class Batch:
    """What a micro-batch adds, one value per image (B,)."""

    domains: Tensor
    seg_loss: Tensor
    total: Tensor
    weights: Tensor
    reliability: Tensor  # 0 where not valid
    valid: Tensor  # has a class
    u: Tensor  # raw weight, 0 where unknown
    u_known: Tensor
    slots: Tensor | None  # place in the global batch
    attempts: Tensor | None = None  # bad samples that this one stands for


def layout(domains: int, global_batch: int, extras: int) -> dict[str, tuple[int, ...]]:
    """Entries of the buffer that `collect` fills, with their shapes."""
    return {
        "domains": (domains, len(COLUMNS)),
        "weights": (domains, len(reweighting.WEIGHT_EDGES) + 1),
        "losses": (len(ALIGNED), 2),  # Σ over images, number of images that have the term
        "total": (1,),
        "samples": (global_batch, 4),  # w, r, has r, attempts: each row is filled by one rank, so Σ gathers
        "extras": (extras,),
    }


def by_domain(domains: Tensor, values: Tensor, num_domains: int) -> Tensor:
    """Sums over the images of each domain: (B, ...) → (M, ...) float32.

    In float64, where GPUs use no TF32, and in a fixed order, unlike a scattered sum.
    """
    member = torch.nn.functional.one_hot(domains, num_domains).t().double()  # (M, B)
    return (member @ values.flatten(1).double()).view(-1, *values.shape[1:]).float()


@torch.no_grad()
def collect(buffer: SyncBuffer, batch: Batch, losses: Mapping[str, tuple[Tensor, Tensor]]) -> None:
    """Add a micro-batch to the buffer; ``losses``: name → loss (B,), images that have it (B,)."""
    w, ce, r = batch.weights, batch.seg_loss.float(), batch.reliability
    one = torch.ones_like(w)
    columns = [one, w, w**2, w * ce, ce, r, r**2, batch.valid, batch.u, batch.u_known]
    table = torch.stack([column.float() for column in columns], 1)  # (B, columns)
    num_domains = buffer.layout["domains"][0]
    buffer.add("domains", by_domain(batch.domains, table, num_domains))
    buffer.add("weights", by_domain(batch.domains, reweighting.weight_histogram(w), num_domains))
    buffer.add("total", batch.total.sum().view(1))
    if batch.slots is not None:
        attempts = torch.zeros_like(w) if batch.attempts is None else batch.attempts.to(w)
        buffer.view("samples")[batch.slots] = torch.stack([w, r, batch.valid.float(), attempts], 1)
    rows = buffer.view("losses")
    for name, (loss, has) in losses.items():
        rows[ALIGNED.index(name)] += torch.stack([loss.sum(), has.sum().float()])


def whole(buffer: SyncBuffer, head: Tensor) -> dict[str, float]:
    """Column sums over all domains, from the reduced front part of the buffer."""
    return dict(zip(COLUMNS, buffer.view("domains", head).sum(0).tolist(), strict=True))


def figures(
    buffer: SyncBuffer,
    head: Tensor,
    admission: tuple[int, float, float],
    finite: bool,
    extras: dict[str, float],
    detail: Detail | None,
) -> Figures:
    """Figures of the global batch from the reduced front part of the buffer.

    Args:
        buffer: gives the layout.
        head: float64 copy of the front part, on the CPU.
        admission: stage, quantile and threshold of the step.
        finite: whether the buffer was folded.
        extras: the sums of the extras.
        detail: the expensive figures, or None.
    """
    columns = dict(zip(COLUMNS, buffer.view("domains", head).t(), strict=True))  # (M,) each
    sums = whole(buffer, head)
    n, mean = sums["n"], sums["w"] / sums["n"]
    loss = {"total": float(buffer.view("total", head)) / n, "segmentation": sums["ce"] / n}
    for name, (value, count) in zip(ALIGNED, buffer.view("losses", head).tolist(), strict=True):
        if count:
            loss[name] = value / count
    admitted = labelled = 0.0
    if "admission" in buffer.layout:
        admitted, labelled = buffer.view("admission", head).tolist()
    stage, quantile, threshold = admission
    samples = buffer.view("samples", head)  # (G, 4)
    return Figures(
        finite=finite,
        stage=stage,
        loss=loss,
        samples=[round(count) if math.isfinite(count) else 0 for count in columns["n"].tolist()],
        quantile=quantile,
        threshold=threshold,
        admitted_ratio=admitted / labelled if labelled else math.nan,
        ess_ratio=reweighting.effective_sample_size(sums["w"], sums["w_square"]) / n,
        weight_mean=(columns["w"] / columns["n"]).tolist(),  # 0 / 0 is nan: no image
        weight_std=math.sqrt(max(0.0, sums["w_square"] / n - mean * mean)),
        weight_sum=columns["w"].tolist(),
        weight_histogram=buffer.view("weights", head).int().tolist(),
        risk=(columns["w_ce"] / columns["w"]).tolist(),
        reliability=(columns["r"] / columns["n_r"]).tolist(),
        sample_weights=samples[:, 0].tolist(),
        sample_reliability=torch.where(samples[:, 2] > 0, samples[:, 1], math.nan).tolist(),
        sample_attempts=[round(count) for count in samples[:, 3].tolist()],
        extras=extras,
        detail=detail,
    )

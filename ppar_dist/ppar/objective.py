"""The objective of a training step: losses, weights, and what ranks must share.

One step of one rank, with any number of micro-batches:

    settings = objective.begin_step(progress)
    for each micro-batch:
        likelihood = objective.label_likelihood(domains)
        seg_loss = segmentation_loss(logits, labels, likelihood)
        losses = objective.losses(
            settings, dense, labels, domains, seg_loss, batch_slots, label_likelihood=likelihood
        )
        (losses.total.sum() / images_of_the_step_on_this_rank).backward()
    all-reduce objective.buffer.flat (SUM)      # may start before the last backward pass
    figures = objective.end_step(settings)

Statistics used in a step (prototypes, threshold, r̄, σ_r, w̄) are those reduced up to the step
before, so that nothing blocks and N ranks compute what one rank would.

Letters: B images, K classes, D joint width, M domains, (h, w) grid, N = h·w cells, (H, W) pixels.
A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64, Integer
from torch import Tensor

from ppar_dist.config.method_section import PparConfig
from ppar_dist.errors import UserError
from ppar_dist.models.losses import cross_entropy, masked_mean
from ppar_dist.ppar import alignment, cells, reweighting, statistics
from ppar_dist.ppar.alignment import Term
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.state import MethodState
from ppar_dist.ppar.step_settings import StepSettings
from ppar_dist.ppar.sync import SyncBuffer

__all__ = ["BatchLosses", "Figures", "Objective", "StepSettings"]


@dataclass(frozen=True)
class BatchLosses:
    """What one micro-batch contributes, per sample."""

    total: Float[Tensor, " B"]  # with gradient: w_i (CE_i + Σ λ L_i)
    weights: Float[Tensor, " B"]
    named: dict[str, Float[Tensor, " B"]]  # unweighted, without gradient
    reliability: Float[Tensor, " B"]  # in nats; nan where an image has no class


@dataclass(frozen=True)
class _Aligned:
    terms: dict[str, Term]
    reliability: Float[Tensor, " B"]  # 0 where not valid
    valid: Bool[Tensor, " B"]


class Objective:
    """Holds the method's state, and turns predictions into losses and sums to be reduced."""

    def __init__(
        self,
        config: PparConfig,
        text: Float[Tensor, "K D"] | None,
        num_domains: int,
        num_classes: int,
        global_batch: int = 0,
        device: torch.device | str = "cpu",
        shared_counts: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        """Start without any statistics.

        Args:
            config: the method; with ``enabled: false`` only losses per domain are kept.
            text: original text prototypes; None only when the method is off.
            num_domains: M source domains.
            num_classes: K.
            global_batch: images per step over all ranks, to report weights per sample; 0: not wanted.
            device: of the predictions.
            shared_counts: shapes by name of further entries of the buffer, which the caller fills.

        Raises:
            UserError: the method is on and ``text`` is missing or does not have K rows.
        """
        self.config = config
        self.num_domains, self.num_classes = num_domains, num_classes
        self.device = torch.device(device)
        self.shared_counts = tuple(shared_counts or ())
        layout = statistics.layout(num_domains, global_batch) | dict(shared_counts or {})
        self.state: MethodState | None = None
        if config.enabled:
            if text is None or text.shape[0] != num_classes:
                got = "none" if text is None else f"{text.shape[0]}"
                raise UserError(
                    f"the method needs a text prototype for each of {num_classes} classes, got {got}; "
                    "check text.file against data.classes, or set ppar.enabled=false"
                )
            self.state = MethodState(config, text, num_domains, self.device)
            layout |= self.state.layout()
        self.buffer = SyncBuffer(layout, self.device)
        self._read: Tensor | None = None  # see `_front`

    # ------------------------------------------------------------------ a step

    def begin_step(self, progress: float) -> StepSettings:
        """Empty the buffer and freeze what the step at ``progress`` (0 to 1) uses."""
        self._read = None
        self.buffer.zero()
        if self.state is None:
            return StepSettings(stage=alignment.stage_at(progress, self.config.alignment.boundaries))
        return self.state.settings(progress)

    def label_likelihood(self, domains: Int64[Tensor, " B"]) -> Float[Tensor, "B K K"] | None:
        """What the labels of a micro-batch may stand for; None where all domains are trusted in full.

        It depends on the run's domains, not on those of the micro-batch: ranks take the same path.
        """
        if self.state is None or self.state.likelihood is None or not self.state.corrects:
            return None
        return self.state.likelihood[domains]

    def losses(
        self,
        settings: StepSettings,
        dense: Float[Tensor, "B D h w"] | None,
        labels: Integer[Tensor, "B H W"],
        domains: Int64[Tensor, " B"],
        seg_loss: Float[Tensor, " B"],
        batch_slots: Int64[Tensor, " B"] | None = None,
        teacher_dense: Float[Tensor, "B D h2 w2"] | None = None,
        attempts: Int64[Tensor, " B"] | None = None,
        label_likelihood: Float[Tensor, "B K K"] | None = None,
    ) -> BatchLosses:
        """Losses and weights of a micro-batch; its sums go to the buffer.

        Args:
            settings: of this step, from `begin_step`.
            dense: features in the joint space, not normalised; None when the method is off.
            labels: class ids, 255 is ignored.
            domains: source numbers.
            seg_loss: segmentation loss per image.
            batch_slots: places in the global batch, 0 to G - 1; None: samples are not reported.
            teacher_dense: features of the teacher, with ``bank.teacher`` frozen or ema: these feed the
                bank, and on steps without them it is left alone.
            attempts: bad samples that each sample stands for, to be reported too; None: none.
            label_likelihood: of the micro-batch; the pixel stage reads its labels by it, too.

        Raises:
            UserError: features and text prototypes differ in width.
        """
        missing = torch.zeros_like(seg_loss, dtype=torch.float32)
        aligned = _Aligned({}, missing, missing > 0)
        if self.state is not None:
            assert dense is not None, "the method is on: it needs dense features"
            with torch.autocast(dense.device.type, enabled=False):
                aligned = self._align(settings, dense, labels, domains, teacher_dense, label_likelihood)
        weights, u, known = self._weigh(settings, aligned)
        total = seg_loss.float()
        for term in aligned.terms.values():
            total = total + term.weight * term.value
        total = weights * total
        r, valid = aligned.reliability, aligned.valid
        batch = statistics.BatchStatistics(
            domains, seg_loss, total, weights, r, valid, u, known, batch_slots, attempts
        )
        statistics.collect(self.buffer, batch, aligned.terms)
        named = {"segmentation": seg_loss.detach()}
        named |= {name: term.value.detach() for name, term in aligned.terms.items()}
        return BatchLosses(total, weights, named, r.masked_fill(~valid, math.nan))

    def is_finite(self) -> bool:
        """Whether the reduced buffer holds numbers only. All ranks see the same buffer and agree."""
        return bool(self._front().isfinite().all())

    def end_step(self, settings: StepSettings, detail: bool = True, fold: bool = True) -> Figures:
        """Fold the reduced buffer into the state and return the figures of the global batch.

        A buffer that holds a nan or inf anywhere is not folded (``finite`` is False): one bad batch
        would never leave the moving averages.

        Args:
            settings: of this step, from `begin_step`.
            detail: also compute what costs more (see `diagnostics.Detail`).
            fold: False leaves the state alone, for a step that is not taken; ``finite`` is False then too.
        """
        head, finite = self._front(), fold and self.is_finite()
        self._read = None
        if self.state and finite:
            self.state.fold(self.buffer, head)
        more = self.detail() if detail else None
        counts = {name: self.buffer.view(name, head) for name in self.shared_counts}
        return statistics.figures(self.buffer, head, settings, finite, counts, more)

    def detail(self) -> Detail | None:
        """The figures of the state that cost more; None when the method is off."""
        return self.state.detail() if self.state else None

    # ------------------------------------------------------------------- state

    def state_dict(self) -> dict[str, Tensor]:
        """All statistics as copies; empty when the method is off."""
        return self.state.state_dict() if self.state else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave, to continue bit for bit.

        Raises:
            UserError: the statistics are those of another configuration.
        """
        if self.state:
            self.state.load_state_dict(state)
        elif state:
            raise UserError(
                "the checkpoint holds statistics of the method and ppar.enabled is false; "
                "resume with the configuration it was written with"
            )

    # ------------------------------------------------------------------- parts

    def _front(self) -> Float[Tensor, " front"]:
        """The reduced buffer's front, float64 on the CPU, and a sum that tells if the rest is finite.

        A step brings it from the device once, for all that the host decides.
        """
        if self._read is None:
            flat = self.buffer.flat
            front = self.buffer.start("counts") if self.state else flat.numel()
            self._read = torch.cat([flat[:front], flat[front:].sum().view(1)]).cpu().double()
        return self._read

    def _cells(
        self,
        dense: Tensor,
        labels: Tensor,
        width: int,
        prototypes: Tensor | None = None,
    ) -> cells.CellFeatures:
        if dense.shape[1] != width:
            raise UserError(
                f"features are {dense.shape[1]} wide and text prototypes {width}; "
                "choose embeddings of the backbone's joint width (text.file, embed_dim)"
            )
        grid = (dense.shape[2], dense.shape[3])
        truth = cells.cell_labels(labels, grid, self.num_classes, self.config.min_purity)
        return cells.cell_features(dense, truth, self.num_classes, prototypes)

    def _align(
        self,
        settings: StepSettings,
        dense: Tensor,
        labels: Tensor,
        domains: Tensor,
        teacher: Tensor | None,
        likelihood: Tensor | None,
    ) -> _Aligned:
        text, prototypes = settings.text, settings.prototypes
        assert text is not None
        assert prototypes is not None
        tau, width = self.config.alignment.temperature, text.shape[1]
        visual, pools = settings.visual_weight > 0, settings.text_weight > 0 or settings.visual_weight > 0
        # A graph is recorded only where a loss needs it.
        dense = _tracked(dense, pools or settings.pixel_weight > 0)
        features = self._cells(dense, labels, width, prototypes if settings.needs_cosines else None)
        pooled, present = cells.pool(_tracked(features.sums, pools)), features.present
        terms: dict[str, Term] = {}
        if settings.text_weight > 0:
            loss, has = alignment.pooled_alignment(pooled, present, text, tau)
            terms["text"] = Term(settings.text_weight, loss, has)
        r, valid = reweighting.reliability(_tracked(pooled, visual), present, prototypes, tau)
        if visual:
            terms["visual_text"] = Term(settings.visual_weight, -r, valid)  # minus the reliability
        if features.cosines is not None:
            terms |= self._pixel(settings, features.cosines, features.labels, likelihood)
        if self.config.bank.teacher == "student":
            assert teacher is None, "teacher features were given and bank.teacher is student"
            self._feed_bank(features, domains)
        elif teacher is not None:
            self._feed_bank(self._cells(teacher.detach(), labels, width), domains)
        return _Aligned(terms, r.detach(), valid)

    def _pixel(
        self, settings: StepSettings, cosines: Tensor, labels: Tensor, likelihood: Tensor | None
    ) -> dict[str, Term]:
        """Pixel loss of the admitted cells; the difficulty comes from the same logits.

        The histogram is filled from the visual-text stage on, so that there is a threshold when the pixel
        stage begins.
        """
        align = self.config.alignment
        cosines = _tracked(cosines, settings.pixel_weight > 0)
        loss = cross_entropy(cosines / align.temperature, labels, likelihood)  # (B, N)
        hard, valid = alignment.difficulty(loss.detach()), cells.valid_cells(labels)
        self.buffer.add("difficulty", alignment.difficulty_histogram(hard, valid, align.difficulty_bins))
        if settings.pixel_weight == 0:
            return {}
        admitted = alignment.admitted_cells(hard, valid, settings.threshold)
        self.buffer.add("admission", torch.stack([admitted.sum(), valid.sum()]))
        return {"pixel": Term(settings.pixel_weight, masked_mean(loss, admitted), admitted.any(1))}

    @torch.no_grad()
    def _feed_bank(self, features: cells.CellFeatures, domains: Tensor) -> None:
        self.buffer.add("counts", statistics.by_domain(domains, features.counts, self.num_domains))
        self.buffer.add("sums", statistics.by_domain(domains, features.sums, self.num_domains))

    def _weigh(self, settings: StepSettings, aligned: _Aligned) -> tuple[Tensor, Tensor, Tensor]:
        """Weights w (B,), raw weights u (B,) and which u are known (B,).

        u gathers statistics as soon as r̄ and σ_r exist, so that w̄ is ready when weights begin.
        """
        ones, moments = torch.ones_like(aligned.reliability), settings.moments
        if moments.mean is None or moments.spread is None:
            return ones, 0 * ones, torch.zeros_like(aligned.valid)
        raw = reweighting.raw_weights(
            aligned.reliability, moments.mean, moments.spread, self.config.reweighting
        )
        weights = ones
        if settings.reweight and moments.mean_weight is not None:
            weights = torch.where(aligned.valid, raw / moments.mean_weight, ones)
        return weights, raw * aligned.valid, aligned.valid


def _tracked(x: Tensor, needed: bool) -> Tensor:
    """``x`` with its graph, or without it where no loss needs its gradient."""
    return x if needed else x.detach()

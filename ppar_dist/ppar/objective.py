"""The objective of a training step: losses, weights, and what ranks must share.

One step of one rank, with any number of micro-batches:

    plan = objective.begin_step(progress)
    for each micro-batch:
        terms = objective.terms(dense, labels, domains, seg_loss, slots)
        (terms.total.sum() / images_of_the_step_on_this_rank).backward()
    all-reduce objective.buffer.flat (SUM)      # may start before the last backward pass
    figures = objective.end_step()

Statistics used in a step (prototypes, threshold, r̄, σ_r, w̄) are those reduced up to the step
before, so that nothing blocks and N ranks compute what one rank would.

Letters: B images, K classes, D joint width, M domains, (h, w) grid, N = h·w cells.
A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ppar_dist.config.schema import PparConfig
from ppar_dist.errors import UserError
from ppar_dist.models.losses import masked_mean
from ppar_dist.ppar import alignment, cells, reweighting, statistics
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.state import MethodState
from ppar_dist.ppar.sync import SyncBuffer

__all__ = ["Figures", "Objective", "StepSettings", "Terms"]


@dataclass(frozen=True)
class StepSettings:
    """What a step uses, frozen at its start and equal on all ranks."""

    stage: alignment.Stage
    text_weight: float  # λ, 0 is off
    visual_weight: float
    pixel_weight: float
    quantile: float  # of difficulty, up to which cells are admitted; nan outside the pixel stage
    threshold: float  # the difficulty there; nan admits nothing
    needs_cosines: bool  # of cells to prototypes, for the pixel loss or its difficulty histogram
    moments: reweighting.Moments
    reweight: bool
    text: Tensor | None  # (K, D) original text prototypes
    prototypes: Tensor | None  # (K, D) visual text prototypes


@dataclass(frozen=True)
class Terms:
    """What one micro-batch contributes, per sample."""

    total: Tensor  # (B,) with gradient: w_i (CE_i + Σ λ L_i)
    weights: Tensor  # (B,)
    named: dict[str, Tensor]  # (B,) each, unweighted, without gradient
    reliability: Tensor  # (B,) in nats; nan where an image has no class


@dataclass(frozen=True)
class _Aligned:
    losses: dict[str, tuple[float, Tensor, Tensor]]  # name: (λ, loss (B,), samples that have it (B,))
    reliability: Tensor  # (B,), 0 where not valid
    valid: Tensor  # (B,) bool


class Objective:
    """Holds the method's state, and turns predictions into losses and sums to be reduced."""

    def __init__(
        self,
        config: PparConfig,
        text: Tensor | None,
        num_domains: int,
        num_classes: int,
        global_batch: int = 0,
        device: torch.device | str = "cpu",
        extras: Sequence[str] = (),
    ) -> None:
        """Start without any statistics.

        Args:
            config: the method; with ``enabled: false`` only losses per domain are kept.
            text: (K, D) original text prototypes; None only when the method is off.
            num_domains: M source domains.
            num_classes: K.
            global_batch: images per step over all ranks, to report weights per sample; 0: not wanted.
            device: of the predictions.
            extras: names of further numbers to sum over ranks with the same all-reduce (`add_extra`).

        Raises:
            UserError: the method is on and ``text`` is missing or does not have K rows.
        """
        self.config = config
        self.num_domains, self.num_classes = num_domains, num_classes
        self.device = torch.device(device)
        self.extras = tuple(extras)
        layout = statistics.layout(num_domains, global_batch, len(self.extras))
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
        self._plan: StepSettings | None = None

    # ------------------------------------------------------------------ a step

    def begin_step(self, progress: float) -> StepSettings:
        """Empty the buffer and freeze what the step at ``progress`` (0 to 1) uses."""
        self.buffer.zero()
        align = self.config.alignment
        stage = alignment.stage_at(progress, align.boundaries)
        if self.state is None:
            none = reweighting.Moments()
            self._plan = StepSettings(
                stage, 0.0, 0.0, 0.0, math.nan, math.nan, False, none, False, None, None
            )
            return self._plan
        text, visual, pixel = alignment.stage_weights(stage, align)
        quantile = threshold = math.nan
        if pixel > 0:
            quantile = alignment.admission_quantile(progress, align.boundaries[2], align.admit_from)
            threshold = self.state.difficulty.threshold(quantile)
        ready = align.enabled and align.pixel_weight > 0
        reweight = self.config.reweighting.enabled and stage >= self.config.reweighting.start_stage
        self._plan = StepSettings(
            stage=stage,
            text_weight=text,
            visual_weight=visual,
            pixel_weight=pixel,
            quantile=quantile,
            threshold=threshold,
            needs_cosines=ready and stage >= alignment.Stage.VISUAL_TEXT,
            moments=self.state.moments.moments(),
            reweight=reweight,
            text=self.state.text,
            prototypes=self.state.prototypes,
        )
        return self._plan

    def terms(
        self,
        dense: Tensor | None,
        labels: Tensor,
        domains: Tensor,
        seg_loss: Tensor,
        slots: Tensor | None = None,
        teacher_dense: Tensor | None = None,
        attempts: Tensor | None = None,
    ) -> Terms:
        """Losses and weights of a micro-batch; its sums go to the buffer.

        Args:
            dense: (B, D, h, w) features in the joint space, not normalised; None when the method is off.
            labels: (B, H, W) class ids, 255 is ignored.
            domains: (B,) int64 source numbers.
            seg_loss: (B,) segmentation loss per image.
            slots: (B,) int64 places in the global batch, 0 to G - 1; None: samples are not reported.
            teacher_dense: (B, D, h', w') of the teacher, with ``bank.teacher`` frozen or ema: these feed the
                bank, and on steps without them it is left alone.
            attempts: (B,) int64 bad samples that each sample stands for, to be reported too; None: none.

        Raises:
            UserError: features and text prototypes differ in width.
        """
        plan = self._plan
        assert plan is not None, "begin_step comes before terms"
        missing = torch.zeros_like(seg_loss, dtype=torch.float32)
        aligned = _Aligned({}, missing, missing > 0)
        if self.state is not None:
            assert dense is not None, "the method is on: it needs dense features"
            with torch.autocast(dense.device.type, enabled=False):
                aligned = self._align(dense, labels, domains, teacher_dense, plan)
        weights, u, known = self._weigh(aligned, plan)
        total = seg_loss.float()
        for weight, loss, _ in aligned.losses.values():
            total = total + weight * loss
        total = weights * total
        r, valid = aligned.reliability, aligned.valid
        batch = statistics.Batch(domains, seg_loss, total, weights, r, valid, u, known, slots, attempts)
        losses = {name: (loss, has) for name, (_, loss, has) in aligned.losses.items()}
        statistics.collect(self.buffer, batch, losses)
        named = {"segmentation": seg_loss.detach()}
        named |= {name: loss.detach() for name, (_, loss, _) in aligned.losses.items()}
        return Terms(total, weights, named, r.masked_fill(~valid, math.nan))

    def add_extra(self, name: str, value: float) -> None:
        """Add to one of the ``extras``, whose sum over ranks `end_step` returns."""
        self.buffer.view("extras")[self.extras.index(name)] += value

    def is_finite(self) -> bool:
        """Whether the reduced buffer holds numbers only. All ranks see the same buffer and agree."""
        return bool(self.buffer.flat.isfinite().all())

    def end_step(self, detail: bool = True, fold: bool = True) -> Figures:
        """Fold the reduced buffer into the state and return the figures of the global batch.

        A buffer that holds a nan or inf anywhere is not folded (``finite`` is False): one bad batch
        would stay in the moving averages for ever.

        Args:
            detail: also compute what costs more (see `diagnostics.Detail`).
            fold: False leaves the state alone, for a step that is not taken; ``finite`` is False then too.
        """
        plan, flat = self._plan, self.buffer.flat
        assert plan is not None, "begin_step comes before end_step"
        self._plan = None
        front = self.buffer.start("counts") if self.state else flat.numel()
        # one transfer from the device: the small entries, and a sum that tells if the rest is finite
        head = torch.cat([flat[:front], flat[front:].sum().view(1)]).cpu().double()
        finite = fold and bool(head.isfinite().all())
        if self.state and finite:
            self.state.fold(self.buffer, head)
        more = self.detail() if detail else None
        admission = (int(plan.stage), plan.quantile, plan.threshold)
        extras = dict(zip(self.extras, self.buffer.view("extras", head).tolist(), strict=True))
        return statistics.figures(self.buffer, head, admission, finite, extras, more)

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

    def _cells(
        self, dense: Tensor, labels: Tensor, width: int, prototypes: Tensor | None = None
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
        dense: Tensor,
        labels: Tensor,
        domains: Tensor,
        teacher: Tensor | None,
        plan: StepSettings,
    ) -> _Aligned:
        assert plan.text is not None
        assert plan.prototypes is not None
        tau, width = self.config.alignment.temperature, plan.text.shape[1]
        pools = plan.text_weight > 0 or plan.visual_weight > 0
        with _gradient(pools or plan.pixel_weight > 0):
            features = self._cells(dense, labels, width, plan.prototypes if plan.needs_cosines else None)
        with _gradient(pools):
            pooled = features.pooled
        losses: dict[str, tuple[float, Tensor, Tensor]] = {}
        if plan.text_weight > 0:
            loss, has = alignment.pooled_alignment(pooled, features.present, plan.text, tau)
            losses["text"] = (plan.text_weight, loss, has)
        with _gradient(plan.visual_weight > 0):
            r, valid = reweighting.reliability(pooled, features.present, plan.prototypes, tau)
        if plan.visual_weight > 0:
            losses["visual_text"] = (plan.visual_weight, -r, valid)  # the loss is minus the reliability
        if features.cosines is not None:
            losses |= self._pixel(features.cosines, features.labels, plan)
        if self.config.bank.teacher == "student":
            assert teacher is None, "teacher features were given and bank.teacher is student"
            self._feed_bank(features, domains)
        elif teacher is not None:
            self._feed_bank(self._cells(teacher.detach(), labels, width), domains)
        return _Aligned(losses, r.detach(), valid)

    def _pixel(
        self, cosines: Tensor, labels: Tensor, plan: StepSettings
    ) -> dict[str, tuple[float, Tensor, Tensor]]:
        """Pixel loss of the admitted cells; the difficulty comes from the same logits.

        The histogram is filled from the visual-text stage on, so that a threshold stands ready when
        the pixel stage begins.
        """
        align = self.config.alignment
        with _gradient(plan.pixel_weight > 0):
            loss = cells.cell_cross_entropy(cosines / align.temperature, labels)  # (B, N)
        hard, valid = alignment.difficulty(loss.detach()), cells.valid_cells(labels)
        self.buffer.add("difficulty", alignment.difficulty_histogram(hard, valid, align.difficulty_bins))
        if plan.pixel_weight == 0:
            return {}
        admitted = alignment.admitted_cells(hard, valid, plan.threshold)
        self.buffer.add("admission", torch.stack([admitted.sum(), valid.sum()]))
        return {"pixel": (plan.pixel_weight, masked_mean(loss, admitted), admitted.any(1))}

    @torch.no_grad()
    def _feed_bank(self, features: cells.CellFeatures, domains: Tensor) -> None:
        self.buffer.add("counts", statistics.by_domain(domains, features.counts, self.num_domains))
        self.buffer.add("sums", statistics.by_domain(domains, features.sums, self.num_domains))

    def _weigh(self, aligned: _Aligned, plan: StepSettings) -> tuple[Tensor, Tensor, Tensor]:
        """Weights w (B,), raw weights u (B,) and which u are known (B,).

        u gathers statistics as soon as r̄ and σ_r exist, so that w̄ is ready when weights begin.
        """
        ones, moments = torch.ones_like(aligned.reliability), plan.moments
        if moments.mean is None or moments.spread is None:
            return ones, 0 * ones, torch.zeros_like(aligned.valid)
        raw = reweighting.raw_weights(
            aligned.reliability, moments.mean, moments.spread, self.config.reweighting
        )
        weights = ones
        if plan.reweight and moments.mean_weight is not None:
            weights = torch.where(aligned.valid, raw / moments.mean_weight, ones)
        return weights, raw * aligned.valid, aligned.valid


def _gradient(needed: bool) -> torch.set_grad_enabled:
    """Context that records a graph only where a loss needs it (and the caller records one at all)."""
    return torch.set_grad_enabled(needed and torch.is_grad_enabled())

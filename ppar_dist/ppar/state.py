"""The method's state between steps: bank, visual text prototypes, moments, difficulty histogram.

It changes once per step, by the sums over the global batch, so it is equal on all ranks.
Letters: M domains, K classes, D joint width. A reconstruction; see README, Method.
"""

from __future__ import annotations

import math
import zlib

import torch
from jaxtyping import Float
from torch import Tensor

from ppar_dist.config.method_section import PparConfig
from ppar_dist.errors import UserError
from ppar_dist.ppar import alignment, diagnostics, statistics
from ppar_dist.ppar.cells import unit
from ppar_dist.ppar.prototypes import PrototypeBank, visual_text_prototypes
from ppar_dist.ppar.reweighting import MovingMoments
from ppar_dist.ppar.step_settings import StepSettings
from ppar_dist.ppar.sync import SyncBuffer


class MethodState:
    """Statistics over the steps done so far, and the prototypes that follow from them."""

    def __init__(
        self,
        config: PparConfig,
        text: Float[Tensor, "K D"],
        num_domains: int,
        device: torch.device,
    ) -> None:
        """Empty statistics.

        Args:
            config: the method.
            text: the original text prototypes.
            num_domains: M.
            device: of the predictions.
        """
        self.config = config
        self.text = unit(text.detach().to(device, torch.float32))  # (K, D)
        classes, width = self.text.shape
        self.bank = PrototypeBank(num_domains, classes, width, config.bank.momentum, device)
        self.moments = MovingMoments(config.reweighting.momentum)
        self.difficulty = alignment.DifficultyHistogram(config.alignment.difficulty_bins)
        # (M, K) and (M, K, K), see `ppar.trust`; they stay what the survey found
        self.trust: Tensor | None = None
        self.likelihood: Tensor | None = None
        self.corrects = False  # whether any label may stand for another class than its own
        if config.reweighting.enabled and config.reweighting.trust.enabled:
            self.trust = torch.ones(num_domains, classes, device=device)
            self.likelihood = torch.eye(classes, device=device).repeat(num_domains, 1, 1)
        self.prototypes = self._visual_text()  # (K, D)
        self._before = self.prototypes

    def believe(self, trust: Float[Tensor, "M K"], likelihood: Float[Tensor, "M K K"]) -> None:
        """Take over what a survey found, where the configuration asks for it."""
        assert self.trust is not None
        assert self.likelihood is not None
        self.trust.copy_(trust)
        self.likelihood.copy_(likelihood)
        own = torch.eye(self.likelihood.shape[1], device=self.likelihood.device)
        self.corrects = bool((self.likelihood != own).any())

    def settings(self, progress: float) -> StepSettings:
        """What the step at ``progress`` (0 to 1) uses: statistics of the steps before, prototypes, λ."""
        align, weighing = self.config.alignment, self.config.reweighting
        stage = alignment.stage_at(progress, align.boundaries)
        text, visual, pixel = alignment.stage_weights(stage, align)
        quantile = threshold = math.nan
        if pixel > 0:
            quantile = alignment.admission_quantile(progress, align.boundaries[2], align.admit_from)
            threshold = self.difficulty.threshold(quantile)
        ready = align.enabled and align.pixel_weight > 0
        return StepSettings(
            stage=stage,
            text_weight=text,
            visual_weight=visual,
            pixel_weight=pixel,
            quantile=quantile,
            threshold=threshold,
            needs_cosines=ready and stage >= alignment.Stage.VISUAL_TEXT,
            moments=self.moments.moments(),
            reweight=weighing.enabled and stage >= weighing.start_stage,
            text=self.text,
            prototypes=self.prototypes,
        )

    def layout(self) -> dict[str, tuple[int, ...]]:
        """Entries of the buffer that `fold` reads, the large ones last."""
        small: dict[str, tuple[int, ...]] = {
            "admission": (2,),  # admitted, labelled cells
            "difficulty": (len(self.difficulty.counts),),
        }
        large = {"counts": tuple(self.bank.counts.shape), "sums": tuple(self.bank.sums.shape)}
        return small | large

    def fold(self, buffer: SyncBuffer, head: Float[Tensor, " front"]) -> None:
        """Add the reduced buffer; ``head`` is a float64 copy on the CPU of all before "counts"."""
        sums = statistics.overall(buffer, head)
        self.moments.fold(sums.r, sums.r_square, sums.n_r, sums.u, sums.n_u)
        self.difficulty.fold(buffer.view("difficulty", head).tolist())
        self.bank.fold(buffer.view("sums"), buffer.view("counts"))
        self._before, self.prototypes = self.prototypes, self._visual_text()

    def detail(self) -> diagnostics.Detail:
        """Figures of the state after the last `fold`; one transfer from the device brings all."""
        parts = {
            "discrepancy": diagnostics.domain_discrepancy(*self.bank.centroids()),
            "similarity": diagnostics.prototype_text_similarity(self.prototypes, self.text),
            "drift": diagnostics.prototype_drift(self.prototypes, self._before),
            "cells": self.bank.cells_total,
            "sums": self.bank.sums,
            "counts": self.bank.counts,
        } | ({} if self.trust is None else {"trust": self.trust})
        flat = torch.cat([part.double().flatten() for part in parts.values()]).cpu()
        pieces = torch.split(flat, [part.numel() for part in parts.values()])
        found = {name: piece.view(parts[name].shape) for name, piece in zip(parts, pieces, strict=True)}
        return diagnostics.Detail(
            domain_discrepancy=float(found["discrepancy"]),
            prototype_text_similarity=found["similarity"].tolist(),
            prototype_drift=found["drift"].tolist(),
            cells_total=found["cells"].tolist(),
            prototype_checksum=_checksum(found["sums"].float(), found["counts"].float()),
            trust=found["trust"].tolist() if "trust" in found else None,
        )

    def checksum(self) -> int:
        """CRC-32 of the bank's bytes; equal on all ranks."""
        return _checksum(self.bank.sums.cpu(), self.bank.counts.cpu())

    def state_dict(self) -> dict[str, Tensor]:
        """All statistics as copies; restoring them continues bit for bit."""
        state = {
            "bank.sums": self.bank.sums.clone(),
            "bank.counts": self.bank.counts.clone(),
            "bank.cells_total": self.bank.cells_total.clone(),
            "reweighting.moments": torch.tensor(self.moments.sums, dtype=torch.float64),
            "alignment.difficulty": torch.tensor(self.difficulty.counts, dtype=torch.float64),
        }
        if self.trust is not None:
            state["reweighting.trust"] = self.trust.clone()
        if self.likelihood is not None:
            state["reweighting.likelihood"] = self.likelihood.clone()
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            UserError: an entry is missing, unknown or of another shape.
        """
        state, mine = dict(state), self.state_dict()
        trust = state.get("reweighting.trust")
        if self.likelihood is not None and trust is not None and bool((trust == 1).all()):
            # An earlier version has no likelihood; where all is trusted in full a label is its class.
            own = torch.eye(self.likelihood.shape[1]).expand_as(self.likelihood)
            state.setdefault("reweighting.likelihood", own)
        wrong = sorted(mine.keys() ^ state.keys())
        wrong += [
            f"{name} is {tuple(state[name].shape)}, not {tuple(value.shape)}"
            for name, value in mine.items()
            if name in state and state[name].shape != value.shape
        ]
        if wrong == ["reweighting.likelihood"]:
            raise UserError(
                "the checkpoint was written by a version that weighed distrusted labels instead of reading "
                "them as what they may stand for; finish it with that version, or train it again"
            )
        if wrong:
            raise UserError(
                f"the checkpoint's statistics do not fit this configuration: {'; '.join(wrong)}; "
                "resume with the sources, classes and method it was written with"
            )
        for name in ("sums", "counts", "cells_total"):
            getattr(self.bank, name).copy_(state[f"bank.{name}"])
        self.moments.sums = state["reweighting.moments"].tolist()
        self.difficulty.counts = state["alignment.difficulty"].tolist()
        if self.trust is not None:
            self.believe(state["reweighting.trust"], state["reweighting.likelihood"])
        self.prototypes = self._before = self._visual_text()

    def _visual_text(self) -> Tensor:
        vtp = self.config.vtp
        if not vtp.enabled:
            return self.text
        seen = self.bank.cells_total.sum(0)  # (K,)
        return visual_text_prototypes(
            self.text, self.bank.class_means(self.trust), seen, vtp.alpha_max, vtp.count_0
        )


def _checksum(*parts: Tensor) -> int:
    """CRC-32 of the bytes of tensors on the CPU."""
    return zlib.crc32(torch.cat([part.flatten() for part in parts]).numpy().tobytes())

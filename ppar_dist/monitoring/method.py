"""The metrics of the method: alignment, sample weights, prototypes, and what the theory watches."""

from __future__ import annotations

from collections.abc import Sequence

from ppar_dist.config.method_section import PparConfig
from ppar_dist.monitoring.registry import Registry, set_known
from ppar_dist.monitoring.weight_histogram import SampleWeights
from ppar_dist.ppar.alignment import Stage
from ppar_dist.ppar.diagnostics import Detail, Figures

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


class MethodMetrics:
    """Figures of the global batch and of the state that it left; for one process of the job."""

    def __init__(
        self, registry: Registry, config: PparConfig, domains: Sequence[str], classes: Sequence[str]
    ) -> None:
        """Register everything at zero, for M source ``domains`` and K ``classes``."""
        self._domains, self._classes = tuple(domains), tuple(classes)
        self._cells_seen = [[0.0] * len(classes) for _ in domains]
        self.weights = SampleWeights(self._domains)
        registry.register(self.weights)
        self._register_alignment(registry, config)
        self._register_prototypes(registry)
        gauge = registry.gauge
        self.quantile = gauge("sample_weight_quantile", "Of the last batch.", "domain", "quantile")
        self.ess = gauge("effective_sample_size_ratio", "(sum w)^2 / sum w^2 over the batch size.")
        self.reliability = gauge("reliability", "Mean log probability of a domain's classes.", "domain")
        self.risk = gauge(
            "source_risk",
            "Weighted source risk; a label that may stand for many classes costs little.",
            "domain",
        )
        self.trust = gauge(
            "trust", "Trust in the labels of a domain and class, 1 is full.", "domain", "class"
        )

    def _register_alignment(self, registry: Registry, config: PparConfig) -> None:
        self.stage = registry.gauge("alignment_stage", "0 warm-up, 1 text, 2 visual text, 3 pixel.")
        self.admitted = registry.gauge(
            "alignment_admitted_ratio", "Labelled cells admitted to the pixel stage."
        )
        starts = registry.gauge(
            "alignment_stage_start_ratio", "Progress at which a stage begins, as configured.", "stage"
        )
        if config.enabled and config.alignment.enabled:
            for stage, start in zip(Stage, (0.0, *config.alignment.boundaries), strict=True):
                starts.labels(stage.name.lower()).set(start)

    def _register_prototypes(self, registry: Registry) -> None:
        self.similarity = registry.gauge("prototype_text_similarity", "Cosine of VTP and OTP.", "class")
        self.drift = registry.gauge("prototype_drift", "Distance a VTP moved in a step.", "class")
        self.cells = registry.counter("prototype_cells", "Cells taken in by the bank.", "domain", "class")
        self.discrepancy = registry.gauge(
            "domain_discrepancy", "Mean over classes of the largest centroid distance."
        )

    def publish(self, figures: Figures) -> None:
        """Publish the figures of a step."""
        self.stage.set(figures.stage)
        set_known(self.admitted, figures.admitted_ratio)
        set_known(self.ess, figures.ess_ratio)
        for number, domain in enumerate(self._domains):
            set_known(self.reliability.labels(domain), figures.reliability[number])
            set_known(self.risk.labels(domain), figures.risk[number])
            for q in QUANTILES:
                set_known(self.quantile.labels(domain, str(q)), figures.weight_quantile(number, q))
        self.weights.add(figures.weight_histogram, figures.weight_sum)
        if figures.detail is not None:
            self.publish_state(figures.detail)

    def publish_state(self, detail: Detail, count_cells: bool = True) -> None:
        """Publish the state that steps have left behind.

        Args:
            detail: its figures. The bank counts cells over the whole run; what is new since the last call
                is what this process has seen.
            count_cells: False for the state of a checkpoint, whose cells were counted before.
        """
        set_known(self.discrepancy, detail.domain_discrepancy)
        for number, name in enumerate(self._classes):
            set_known(self.similarity.labels(name), detail.prototype_text_similarity[number])
            set_known(self.drift.labels(name), detail.prototype_drift[number])
        for domain, trust in zip(self._domains, detail.trust or (), strict=False):
            for label, value in zip(self._classes, trust, strict=True):
                set_known(self.trust.labels(domain, label), value)
        for m, (row, seen) in enumerate(zip(detail.cells_total, self._cells_seen, strict=True)):
            for k, (total, before) in enumerate(zip(row, seen, strict=True)):
                new = max(0.0, total - before) if count_cells else 0.0  # after a rollback there are fewer
                self.cells.labels(self._domains[m], self._classes[k]).inc(new)
        self._cells_seen = [list(row) for row in detail.cells_total]

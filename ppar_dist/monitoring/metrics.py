"""The Prometheus metrics of a run, on a registry of its own.

Every figure comes from the buffer that a step reduced over its ranks, so that one process carries
the figures of all. Base units; ratios from 0 to 1; labels are domains, classes, terms and groups only.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from ppar_dist import __version__
from ppar_dist.ppar.diagnostics import Detail, Figures
from ppar_dist.ppar.reweighting import WEIGHT_EDGES

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
_STEP_SECONDS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 60)
_CHECKPOINT_SECONDS = (0.5, 1, 2, 5, 10, 20, 60, 120, 300, 600)


class SampleWeights(Collector):
    """``ppar_sample_weight{domain}``: a histogram fed with counts per bin instead of single values.

    The ranks reduce bin counts, not samples, so the client's own histogram cannot hold them.
    """

    def __init__(self, domains: Sequence[str], edges: Sequence[float] = WEIGHT_EDGES) -> None:
        """Empty histograms of M ``domains`` with upper bin ``edges`` (one more bin lies above)."""
        self._domains = tuple(domains)
        self._edges = tuple(edges)
        self._counts = [[0] * (len(edges) + 1) for _ in domains]
        self._sums = [0.0 for _ in domains]

    def add(self, counts: Sequence[Sequence[int]], sums: Sequence[float]) -> None:
        """Take in a global batch: counts (M, E + 1) per bin, and the sums of weights (M,)."""
        for mine, new in zip(self._counts, counts, strict=True):
            for i, count in enumerate(new):
                mine[i] += count
        self._sums = [old + new for old, new in zip(self._sums, sums, strict=True)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The family as Prometheus wants it: counts cumulative over rising edges."""
        family = HistogramMetricFamily("ppar_sample_weight", "Weights of source samples.", labels=["domain"])
        for domain, counts, total in zip(self._domains, self._counts, self._sums, strict=True):
            below, buckets = 0, []
            for edge, count in zip((*self._edges, math.inf), counts, strict=True):
                below += count
                buckets.append(("+Inf" if math.isinf(edge) else str(edge), float(below)))
            family.add_metric([domain], buckets, total)
        yield family


class RunMetrics:
    """The metrics of one run; ``registry`` is what an endpoint serves."""

    def __init__(
        self, domains: Sequence[str], classes: Sequence[str], info: Mapping[str, str] | None = None
    ) -> None:
        """Register everything at zero.

        Args:
            domains: names of the M source domains, in the order of the figures.
            classes: names of the K classes.
            info: labels of ``ppar_run_info`` beside the version, for example run, backbone, method.
        """
        self.domains, self.classes = tuple(domains), tuple(classes)
        self.registry = CollectorRegistry(auto_describe=True)
        self._step = 0
        self.weights = SampleWeights(self.domains)
        self.registry.register(self.weights)
        ProcessCollector(registry=self.registry)
        labels = {"version": __version__, **(info or {})}
        self._gauge("run_info", "Constant 1; its labels tell the run.", *labels).labels(**labels).set(1)
        self._register_method()
        self._register_training()

    def publish_step(
        self,
        step: int,
        figures: Figures,
        learning_rates: Mapping[str, float],
        grad_norm: float,
        seconds: float,
        data_wait: float,
    ) -> None:
        """Publish the figures of a finished step.

        Args:
            step: steps taken by the run. After a resume the first call brings the counter up to the run's
                count; a step that is done again is counted again.
            figures: reduced figures of the global batch.
            learning_rates: by parameter group.
            grad_norm: before clipping; nan leaves the last value.
            seconds: wall time of the step, waiting for data included.
            data_wait: seconds of it spent waiting for data.
        """
        self.steps.inc(max(0, step - self._step))
        self._step = step
        self.step_duration.observe(seconds)
        self.data_wait.inc(max(0.0, data_wait))
        self.last_step.set(time.time())
        _set(self.grad_norm, grad_norm)
        for group, rate in learning_rates.items():
            _set(self.learning_rate.labels(group), rate)
        self._publish_method(figures)

    def publish_checkpoint(self, seconds: float, stall: float) -> None:
        """Publish that a checkpoint was written in ``seconds``; training stood still for ``stall``."""
        self.checkpoint_duration.observe(seconds)
        self.checkpoint_stall.set(stall)
        self.checkpoint_success.set(time.time())

    def publish_miou(self, target: str, miou: float) -> None:
        """Publish the mIoU (0 to 1) of a target or of held-out source data."""
        _set(self.miou.labels(target), miou)

    def _register_method(self) -> None:
        self.stage = self._gauge("alignment_stage", "0 warm-up, 1 text, 2 visual text, 3 pixel.")
        self.admitted = self._gauge("alignment_admitted_ratio", "Labelled cells admitted to the pixel stage.")
        self.quantile = self._gauge("sample_weight_quantile", "Of the last batch.", "domain", "quantile")
        self.ess = self._gauge("effective_sample_size_ratio", "(sum w)^2 / sum w^2 over the batch size.")
        self.reliability = self._gauge("reliability", "Mean log probability of a domain's classes.", "domain")
        self.similarity = self._gauge("prototype_text_similarity", "Cosine of VTP and OTP.", "class")
        self.drift = self._gauge("prototype_drift", "Distance a VTP moved in a step.", "class")
        self.cells = self._counter("prototype_cells", "Cells taken in by the bank.", "domain", "class")
        self.discrepancy = self._gauge(
            "domain_discrepancy", "Mean over classes of the largest centroid distance."
        )
        self.risk = self._gauge("source_risk", "Weighted source risk.", "domain")
        self._cells_seen: dict[tuple[int, int], float] = {}

    def _register_training(self) -> None:
        self.loss = self._gauge("loss", "Loss terms of the global batch, before their weights.", "term")
        self.learning_rate = self._gauge("learning_rate", "Current learning rate.", "group")
        self.grad_norm = self._gauge("grad_norm", "Norm of the global gradient before clipping.")
        self.steps = self._counter("steps", "Optimiser steps.")
        self.samples = self._counter("samples", "Samples trained on in this process's time.", "domain")
        self.step_duration = self._histogram("step_duration_seconds", "Wall time of a step.", _STEP_SECONDS)
        self.data_wait = self._counter("data_wait_seconds", "Time spent waiting for data.")
        self.last_step = self._gauge("last_step_timestamp_seconds", "When the last step ended.")
        self.checkpoint_duration = self._histogram(
            "checkpoint_duration_seconds", "Wall time of writing a checkpoint.", _CHECKPOINT_SECONDS
        )
        self.checkpoint_stall = self._gauge(
            "checkpoint_stall_seconds", "How long the last checkpoint held up training."
        )
        self.checkpoint_success = self._gauge(
            "checkpoint_last_success_timestamp_seconds", "When the last checkpoint was published."
        )
        self.checkpoint_failures = self._counter("checkpoint_failures", "Checkpoints that were not written.")
        self.skipped = self._counter(
            "skipped_steps", "Steps that changed nothing: their result was not finite."
        )
        self.bad_samples = self._counter(
            "bad_samples", "Samples that another one replaced.", "domain", "reason"
        )
        self.resumes = self._counter("resumes", "Times that this process took up a checkpoint.")
        self.miou = self._gauge("miou", "Mean intersection over union.", "target")
        for domain in self.domains:
            self.samples.labels(domain)

    def _publish_method(self, figures: Figures) -> None:
        self.stage.set(figures.stage)
        _set(self.admitted, figures.admitted_ratio)
        _set(self.ess, figures.ess_ratio)
        for term, value in figures.loss.items():
            self.loss.labels(term).set(value)  # a nan stays: it says that training broke
        per_domain = zip(self.domains, figures.samples, figures.reliability, figures.risk, strict=True)
        for number, (domain, count, reliability, risk) in enumerate(per_domain):
            self.samples.labels(domain).inc(count)
            _set(self.reliability.labels(domain), reliability)
            _set(self.risk.labels(domain), risk)
            for q in QUANTILES:
                _set(self.quantile.labels(domain, str(q)), figures.weight_quantile(number, q))
        sums = [value if math.isfinite(value) else 0.0 for value in figures.weight_sum]
        self.weights.add(figures.weight_histogram, sums)
        if figures.detail is not None:
            self._publish_detail(figures.detail)

    def _publish_detail(self, detail: Detail) -> None:
        _set(self.discrepancy, detail.domain_discrepancy)
        for name, cosine in zip(self.classes, detail.prototype_text_similarity, strict=True):
            _set(self.similarity.labels(name), cosine)
        for name, moved in zip(self.classes, detail.prototype_drift, strict=True):
            _set(self.drift.labels(name), moved)
        for m, row in enumerate(detail.cells_total):
            for k, total in enumerate(row):
                # The bank counts over the whole run; the difference keeps the counter a counter.
                self.cells.labels(self.domains[m], self.classes[k]).inc(
                    max(0.0, total - self._cells_seen.get((m, k), 0.0))
                )
                self._cells_seen[m, k] = total

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"ppar_{name}", text, labels, registry=self.registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"ppar_{name}", text, labels, registry=self.registry)  # the client adds _total

    def _histogram(self, name: str, text: str, edges: Iterable[float]) -> Histogram:
        return Histogram(f"ppar_{name}", text, buckets=tuple(edges), registry=self.registry)


def _set(gauge: Gauge, value: float) -> None:
    """Set a gauge; a mean over nothing (nan) leaves the last value."""
    if not math.isnan(value):
        gauge.set(value)

"""``ppar_sample_weight{domain}``: a histogram fed with counts per bin instead of single values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from ppar_dist.ppar.reweighting import WEIGHT_EDGES


class SampleWeights(Collector):
    """Weights of source samples by domain.

    The ranks reduce bin counts, not samples, so the client's own histogram cannot hold them.
    """

    def __init__(self, domains: Sequence[str]) -> None:
        """Empty histograms of M ``domains`` with upper bin edges ``WEIGHT_EDGES`` (one more bin is above)."""
        self._domains = tuple(domains)
        self._counts = [[0] * (len(WEIGHT_EDGES) + 1) for _ in domains]
        self._sums = [0.0 for _ in domains]

    def add(self, counts: Sequence[Sequence[int]], sums: Sequence[float]) -> None:
        """Take in a global batch: counts (M, E + 1) per bin, and the sums of weights (M,)."""
        for mine, new in zip(self._counts, counts, strict=True):
            for i, count in enumerate(new):
                mine[i] += count
        finite = (value if math.isfinite(value) else 0.0 for value in sums)
        self._sums = [old + new for old, new in zip(self._sums, finite, strict=True)]

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """The family in the form of Prometheus: counts cumulative over rising edges."""
        family = HistogramMetricFamily("ppar_sample_weight", "Weights of source samples.", labels=["domain"])
        for domain, counts, total in zip(self._domains, self._counts, self._sums, strict=True):
            below, buckets = 0, []
            for edge, count in zip((*WEIGHT_EDGES, math.inf), counts, strict=True):
                below += count
                buckets.append(("+Inf" if math.isinf(edge) else str(edge), float(below)))
            family.add_metric([domain], buckets, total)
        yield family

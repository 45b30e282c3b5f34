"""The registry of one process: what its endpoint serves, under names that begin with ``ppar_``."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)


class Registry(CollectorRegistry):
    """A registry of its own: the client's global one is left alone."""

    def __init__(self) -> None:
        """Begin with the figures of the process itself: memory, CPU time, open files, start."""
        super().__init__(auto_describe=True)
        disable_created_metrics()  # a second series beside each counter, which Prometheus has no use for
        ProcessCollector(registry=self)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """Register the gauge ``ppar_<name>``."""
        return Gauge(f"ppar_{name}", text, labels, registry=self)

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """Register the counter ``ppar_<name>_total``."""
        return Counter(f"ppar_{name}", text, labels, registry=self)  # the client adds _total

    def histogram(self, name: str, text: str, edges: Iterable[float]) -> Histogram:
        """Register the histogram ``ppar_<name>`` with upper bucket ``edges``."""
        return Histogram(f"ppar_{name}", text, buckets=tuple(edges), registry=self)

    def constant(self, name: str, text: str, **labels: str) -> None:
        """Register the gauge ``ppar_<name>`` of value 1, whose labels tell something."""
        self.gauge(name, text, *labels).labels(**labels).set(1)


def set_known(gauge: Gauge, value: float | None) -> None:
    """Set a gauge; a mean over nothing (None or nan) leaves the last value."""
    if value is not None and not math.isnan(value):
        gauge.set(value)

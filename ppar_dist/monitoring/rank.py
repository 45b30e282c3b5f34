"""The metrics that every rank serves for itself."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

from ppar_dist.monitoring.registry import Registry


class DeviceMemory(NamedTuple):
    """Bytes of a GPU."""

    peak: int  # most that tensors of this process took at a time
    total: int


def device_memory(device: torch.device) -> DeviceMemory | None:
    """The memory of ``device``; None on a CPU, whose process figures tell it."""
    if device.type != "cuda":
        return None
    total = torch.cuda.get_device_properties(device).total_memory
    return DeviceMemory(torch.cuda.max_memory_allocated(device), total)


class RankMetrics:
    """What one rank knows of itself, on the registry that its endpoint serves."""

    def __init__(self, registry: Registry, rank: int, host: str) -> None:
        """Register everything at zero."""
        self.registry = registry
        registry.constant(
            "rank_info", "Constant 1; its labels tell the rank and its host.", rank=str(rank), host=host
        )
        self.last_step = registry.gauge(
            "last_step_timestamp_seconds", "When the last step ended; 0 before the first."
        )
        self._progress = registry.gauge(
            "last_progress_timestamp_seconds",
            "When this rank last began a phase of a step or a save, or got further in an evaluation.",
        )
        self.data_wait = registry.counter("data_wait_seconds", "Time that this rank spent waiting for data.")
        self.checksum = registry.gauge(
            "prototype_checksum", "CRC-32 of this rank's prototype bank at the last logged step."
        )
        self.mismatches = registry.counter(
            "prototype_checksum_mismatches",
            "Comparisons within a step in which the ranks' prototypes were not the same.",
        )

    def follow(self, seconds: Callable[[], float]) -> None:
        """Publish when this rank last made progress: ``seconds()`` ago."""
        # Rounded down, or it would be in the future when it has just happened.
        self._progress.set_function(lambda: math.floor(100 * (time.time() - seconds())) / 100)

    def follow_memory(self, device: torch.device) -> None:
        """Publish the memory of ``device``, asked for at each scrape; nothing on a CPU."""
        found = device_memory(device)
        if found is None:
            return
        peak = self.registry.gauge(
            "device_memory_peak_bytes", "Most memory of its GPU that this rank's tensors took at a time."
        )
        peak.set_function(lambda: torch.cuda.max_memory_allocated(device))
        self.registry.gauge("device_memory_total_bytes", "Memory of this rank's GPU.").set(found.total)

    def publish_step(self, data_wait: float) -> None:
        """Publish that a step has ended, for which this rank waited ``data_wait`` seconds for data."""
        self.last_step.set(time.time())
        self.data_wait.inc(max(0.0, data_wait))

    def publish_checksum(self, checksum: int) -> None:
        """Publish the checksum of the bank (32 bits, which a double holds exactly)."""
        self.checksum.set(checksum)

"""What is asked of a step on a pretended device; each check says what is wrong, or nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# What a step sends, by phase. Statistics are summed while the backward pass runs: theirs starts at the end of
# the last forward pass. Gradients follow while they come into being; the step has its norm, and with ZeRO the
# parameters that each rank has updated.
ALLOWED = {
    "forward": {"allreduce_ float32"},
    "backward": {"allreduce_ float32"},
    "step": {"allreduce_ float64", "_allgather_base_ float32"},
}


@dataclass(frozen=True)
class Bounds:
    """What a step may cost at most.

    Attributes:
        waits: times that the host waits for the device.
        fp32_share: of the FLOPs under bf16: the classifier's cosines and the method's own.
        peak_gib: of memory, at the peak.
        operations: calls that reach the device.
    """

    waits: int
    fp32_share: float
    peak_gib: float
    operations: int


def problems(seen: dict[str, Any], bounds: Bounds) -> list[str]:
    """What is wrong with a step, as ``tests.gpu.rank.told`` tells it."""
    return [*_waits(seen, bounds), *_precision(seen, bounds), *_size(seen, bounds), *misplaced(seen)]


def misplaced(seen: dict[str, Any]) -> Iterator[str]:
    """Collectives outside their phases, and a forward pass with more or less than the statistics' one."""
    for phase, names in seen["collectives"].items():
        for name in sorted(names.keys() - ALLOWED.get(phase, set())):
            yield f"collective {name} in {phase}"
    calls = sum(number for number, _ in seen["collectives"].get("forward", {}).values())
    if calls != 1:
        yield f"collective: {calls} in the forward passes, 1 is right"


def _waits(seen: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    total = sum(seen["waits"].values())
    if total > bounds.waits:
        yield f"waits: {total} of {bounds.waits} at most: {seen['waits']}"


def _precision(seen: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    share = seen["flops"].get("float32", 0.0) / sum(seen["flops"].values())
    if share > bounds.fp32_share:
        yield f"fp32: {share:.1%} of the FLOPs, {bounds.fp32_share:.1%} at most: {seen['slow']}"


def _size(seen: dict[str, Any], bounds: Bounds) -> Iterator[str]:
    if (peak := seen["peak"] / 2**30) > bounds.peak_gib:
        yield f"memory: {peak:.2f} GiB of {bounds.peak_gib} at most"
    if seen["operations"] > bounds.operations:
        yield f"operations: {seen['operations']} of {bounds.operations} at most"

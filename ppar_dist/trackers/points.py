"""From records of a run's metric files to named figures. What stands before the first ``/`` is the group.

``loss``, ``lr``, ``weight``, ``risk`` and so on are groups already. What has none goes to ``speed`` (time and
machine), ``method`` (PPAR) or ``train``; mIoU is ``held_out`` of source data, and ``target`` of targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from ppar_dist.trackers.tracker import Point

_SPEED = {"seconds", "data_wait", "images_per_second", "mfu", "device_memory_peak"}
_METHOD = {"stage", "quantile", "threshold", "admitted_ratio", "ess_ratio", "domain_discrepancy"}


def train_point(record: Mapping[str, Any]) -> Point:
    """The figures of a line of the training log; those without a value are left out."""
    return _point(record["step"], {_grouped(key): value for key, value in record.items() if key != "step"})


def held_out_point(record: Mapping[str, Any]) -> Point:
    """mIoU over all sources and of each, of a line of the evaluation log; of averaged weights too."""
    averaged = record.get("averaged")
    found = _mious("held_out", record)
    if isinstance(averaged, dict):
        found |= _mious("held_out_averaged", averaged)
    return _point(record["step"], found)


def scores(results: Mapping[str, Any]) -> dict[str, float]:
    """mIoU and pixel accuracy of each target, of a table of results as plain values."""
    found = {}
    for name, target in results["targets"].items():
        for key in ("miou", "pixel_accuracy"):
            if _is_figure(target.get(key)):
                found[f"target/{name}/{key}"] = float(target[key])
    return found


def batches(points: Iterator[Point], figures: int = 500) -> Iterator[list[Point]]:
    """Points in lists of at most about ``figures`` figures."""
    batch: list[Point] = []
    for point in points:
        batch.append(point)
        if sum(len(each.values) for each in batch) >= figures:
            yield batch
            batch = []
    if batch:
        yield batch


def _mious(group: str, record: Mapping[str, Any]) -> dict[str, Any]:
    domains = record.get("domains")
    by_domain = domains.items() if isinstance(domains, dict) else ()
    return {f"{group}/miou": record.get("miou")} | {f"{group}/{name}/miou": x for name, x in by_domain}


def _point(step: int, figures: Mapping[str, Any]) -> Point:
    return Point(step, {key: float(value) for key, value in figures.items() if _is_figure(value)})


def _grouped(key: str) -> str:
    if "/" in key:
        return key
    group = "speed" if key in _SPEED else "method" if key in _METHOD else "train"
    return f"{group}/{key}"


def _is_figure(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)

"""What of a run's records can be shown: values of the type and size their place asks for, and nothing else.

A file that was cut, damaged or written by something else may hold any JSON. Each function keeps what fits.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from math import nan
from typing import Any, NamedTuple

from ppar_dist.files.jsonl import is_step

_LARGEST = 3.5e38  # beyond any float32, which all figures once were
_SMALLEST = 1e-200  # below any float32 but 0; axes divide by spans of such figures
_STAGES = 4
_MOST_CLASSES = 256
_REGION_TEXTS = ("domain", "key", "class", "judged_as", "picture")
_COUNTS = ("step", "samples_seen")


class SampleRecord(NamedTuple):
    """A source sample at one logged step; nan where a figure was not recorded."""

    step: int
    domain: str
    sample: int  # number within its domain
    key: str
    weight: float
    reliability: float  # nats


def is_figure(value: Any) -> bool:
    """Whether ``value`` is a number that a figure of a run can have."""
    return type(value) in (int, float) and (value == 0 or _SMALLEST <= abs(value) <= _LARGEST)


def train_record(record: dict[str, Any]) -> dict[str, Any]:
    """Figures and counts of a line of the training log; None stays: a figure without a value."""
    return {key: value for key, value in record.items() if value is None or _fits(key, value)}


def eval_record(record: dict[str, Any]) -> dict[str, Any]:
    """Step, mIoU and mIoU by domain of a line of the evaluation log, where they are such."""
    kept = _without_bad_figures(record, ("miou",))
    if "domains" in kept:
        kept["domains"] = _figures(kept["domains"]) if isinstance(kept["domains"], dict) else {}
    return kept


def counts_matrix(value: Any) -> list[list[int]] | None:
    """A square matrix of counts; None for any other value."""
    if not isinstance(value, list) or not 0 < len(value) <= _MOST_CLASSES:
        return None
    square = all(isinstance(row, list) and len(row) == len(value) for row in value)
    return value if square and all(is_step(count) for row in value for count in row) else None


def sample_record(step: int, entry: Any) -> SampleRecord | None:
    """An entry of the sample log, or None where it names no sample."""
    if not isinstance(entry, dict):
        return None
    domain, key, sample = entry.get("domain"), entry.get("key"), entry.get("sample", -1)
    if not isinstance(domain, str) or not isinstance(key, str) or type(sample) is not int:
        return None
    weight, reliability = (
        entry[name] if is_figure(entry.get(name)) else nan for name in ("weight", "reliability")
    )
    return SampleRecord(step, sys.intern(domain), sample, sys.intern(key), float(weight), float(reliability))


def results_table(value: Any) -> dict[str, Any] | None:
    """The content of ``results.json``, with figures where its table shows them; None for any other value."""
    if not isinstance(value, dict):
        return None
    kept = {key: item for key, item in value.items() if key != "targets"}
    if not isinstance(kept.get("checkpoint", ""), str):
        del kept["checkpoint"]
    if isinstance(value.get("targets"), dict):
        kept["targets"] = {
            name: _target(item) for name, item in value["targets"].items() if isinstance(item, dict)
        }
    return kept


def example_entries(value: Any) -> list[dict[str, Any]]:
    """The entries of the list of examples: texts, and an accuracy."""
    if not isinstance(value, list):
        return []
    return [
        {
            key: item
            for key, item in entry.items()
            if (_is_figure_or_none(item) if key == "accuracy" else isinstance(item, str))
        }
        for entry in value
        if isinstance(entry, dict)
    ]


def audited_regions(value: Any) -> list[dict[str, Any]]:
    """The regions of an audit that name their place and picture, with a weight."""
    regions = value.get("regions") if isinstance(value, dict) else None
    return [
        region
        for region in (regions if isinstance(regions, list) else [])
        if isinstance(region, dict)
        and all(isinstance(region.get(key), str) for key in _REGION_TEXTS)
        and is_figure(region.get("weight"))
    ]


def label_meanings(value: Any) -> list[dict[str, Any]]:
    """The distrusted labels of an audit: domain, label, and figures of the classes it may stand for."""
    tables = value.get("may_be") if isinstance(value, dict) else None
    rows = []
    for domain, labels in (tables if isinstance(tables, dict) else {}).items():
        for label, likely in (labels if isinstance(labels, dict) else {}).items():
            figures = (
                {} if not isinstance(likely, dict) else {k: v for k, v in likely.items() if is_figure(v)}
            )
            if figures:
                rows.append({"domain": domain, "label": label, "classes": figures})
    return rows


def _target(item: dict[str, Any]) -> dict[str, Any]:
    kept = _without_bad_figures(item, ("miou", "pixel_accuracy"))
    for name in ("images", "left_out"):
        if not is_step(kept.get(name, 0)):
            del kept[name]
    if kept.get("confusion") is not None and counts_matrix(kept["confusion"]) is None:
        del kept["confusion"]
    if "iou" in kept:
        kept["iou"] = _figures(kept["iou"]) if isinstance(kept["iou"], dict) else {}
    return kept


def _without_bad_figures(record: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names or _is_figure_or_none(value)}


def _figures(record: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if _is_figure_or_none(value)}


def _is_figure_or_none(value: Any) -> bool:
    return value is None or is_figure(value)


def _fits(key: str, value: Any) -> bool:
    if key in _COUNTS:
        return is_step(value)
    if key == "stage":
        return is_figure(value) and value in range(_STAGES)
    return is_figure(value)

"""Confusion matrices: of the pixels of a class, the share that was called each class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ppar_dist.report.charts import matrix_chart
from ppar_dist.report.records import RunRecords


def confusion_charts(records: RunRecords, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A chart for the held-out source data and for each target whose counts were kept."""
    found = [("held-out sources", records.confusion)]
    targets = (records.results or {}).get("targets")
    for name, item in targets.items() if isinstance(targets, dict) else ():
        found.append((name, item.get("confusion")))
    return [
        {"name": name, "chart": _chart(name, counts, classes)}
        for name, counts in found
        if counts is not None and len(counts) == len(classes)
    ]


def _chart(name: str, counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    shares = [[count / (sum(row) or 1) for count in row] for row in counts]
    title = f"Confusion of {name}: rows are labels, columns predictions, in per cent of the label"
    return matrix_chart(shares, classes, title=title, figure=_per_cent)


def _per_cent(share: float) -> str:
    return f"{100 * share:.0f}" if share >= 0.005 else ""

"""Two runs beside each other: what differs in their configurations, scores and curves."""

from __future__ import annotations

from typing import Any

from ppar_dist.config.identity import config_changes
from ppar_dist.report.charts import Series, bin_mean, line_chart
from ppar_dist.report.cleaning import is_figure
from ppar_dist.report.curves import held_out_curves
from ppar_dist.report.records import RunRecords

_MOST_CHANGES = 60
_CURVES = (
    ("loss/total", "Total loss"),
    ("loss/segmentation", "Segmentation loss"),
    ("grad_norm", "Gradient norm"),
    ("images_per_second", "Images per second"),
)
_LINES = (("this run", "main"), ("the other", "second"))
_HELD_OUT = "held-out sources"


def comparison(ours: RunRecords, theirs: RunRecords) -> dict[str, Any]:
    """What the page shows of two runs; the first is the page's own."""
    changes = config_changes(theirs.config, ours.config)
    charts = [(title, _series(key, ours, theirs)) for key, title in _CURVES]
    held_out = [
        Series(name, curves[0].x, curves[0].y, tone)
        for records, (name, tone) in zip((ours, theirs), _LINES, strict=True)
        if (curves := held_out_curves(records))
    ]
    charts.insert(0, ("Held-out source mIoU", held_out))
    return {
        "name": theirs.config.run.name or theirs.run.resolve().name,
        "folder": str(theirs.run),
        "protocols": _protocols(ours, theirs),
        "changes": changes[:_MOST_CHANGES],
        "left_out": max(0, len(changes) - _MOST_CHANGES),
        "rows": _scores(ours, theirs),
        "charts": [
            {"title": title, "chart": line_chart(series, title=f"{title} by step of both runs")}
            for title, series in charts
            if series
        ],
    }


def _protocols(ours: RunRecords, theirs: RunRecords) -> list[str]:
    """By what protocols the runs were scored, where that is not the same; then scores are not compared."""
    found = [str((records.results or {}).get("protocol", "")) for records in (ours, theirs)]
    both = ours.results is not None and theirs.results is not None
    return found if both and found[0] != found[1] else []


def _series(key: str, ours: RunRecords, theirs: RunRecords) -> list[Series]:
    found = []
    for records, (name, tone) in zip((ours, theirs), _LINES, strict=True):
        x, y = bin_mean(*records.series(key))
        if x:
            found.append(Series(name, x, y, tone))
    return found


def _scores(ours: RunRecords, theirs: RunRecords) -> list[dict[str, str]]:
    """A row for each target that either has: mIoU in per cent, and the difference in points."""
    rows = []
    one, other = _by_target(ours), _by_target(theirs)
    for name in dict.fromkeys([*one, *other]):
        cells = [f"{100 * table[name]:.1f}" if name in table else "–" for table in (one, other)]
        alike = not _protocols(ours, theirs) and _scored(ours, name) == _scored(theirs, name)
        comparable = name in one and name in other and (name == _HELD_OUT or alike)
        difference = f"{100 * (one[name] - other[name]):+.1f}" if comparable else "–"
        cells.append(difference.replace("-", "−"))
        rows.append(dict(zip(("ours", "theirs", "difference"), cells, strict=True)) | {"name": name})
    return rows


def _scored(records: RunRecords, name: str) -> str:
    """Which classes of a target were scored; "" for all."""
    targets = (records.results or {}).get("targets")
    return str(targets[name].get("scored") or "") if isinstance(targets, dict) and name in targets else ""


def _by_target(records: RunRecords) -> dict[str, float]:
    """mIoU of each target that has one, and of the held-out source data."""
    targets = (records.results or {}).get("targets")
    items = targets.items() if isinstance(targets, dict) else ()
    found = {name: float(item["miou"]) for name, item in items if is_figure(item.get("miou"))}
    held_out = held_out_curves(records)
    if held_out and held_out[0].y:
        found[_HELD_OUT] = held_out[0].y[-1] / 100
    return found

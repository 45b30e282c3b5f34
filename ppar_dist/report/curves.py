"""The charts over the steps, and those of the prototypes."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from ppar_dist.evaluation.prototypes import final_cosines
from ppar_dist.report.charts import Series, Span, bar_chart, bin_mean, line_chart, matrix_chart
from ppar_dist.report.cleaning import is_figure
from ppar_dist.report.records import RunRecords
from ppar_dist.report.timeline import STAGES, planned_stages

_WEIGHT_POINTS = 60  # points of a weight curve: each bins the samples of neighbouring steps


def training_charts(records: RunRecords) -> dict[str, Any]:
    """Losses, alignment, held-out mIoU, learning rate, gradient and speed, by their names in the page."""
    spans = stage_spans(records)
    main = [
        _curve(records, "loss/total", "total", "main"),
        _curve(records, "loss/segmentation", "segmentation", "second"),
    ]
    known = (("loss/text", "text"), ("loss/visual_text", "visual text"), ("loss/pixel", "pixel"))
    tones = ("second", "third", "main")
    alignment = [_curve(records, key, label, tone) for (key, label), tone in zip(known, tones, strict=True)]
    alignment = [item for item in alignment if any(item.y)]
    admitted = _curve(records, "admitted_ratio", "admitted", "main")
    distance = _curve(records, "domain_discrepancy", "distance", "main")
    return {
        "loss_chart": line_chart(main, title="Total and segmentation loss by step", spans=spans),
        "alignment_chart": line_chart(alignment, title="Alignment losses by step", spans=spans),
        "admitted_chart": line_chart(
            [admitted], title="Ratio of cells admitted by step", spans=spans, y_range=(0, 1)
        ),
        "discrepancy_chart": line_chart(
            [distance], title="Distance between domains by step", spans=spans, y_range=(0, None)
        ),
        "held_out_chart": line_chart(
            held_out_curves(records),
            title="Held-out source mIoU by step",
            spans=spans,
            width=1040,
            height=260,
        ),
        **_machine_charts(records, spans),
    }


def _machine_charts(records: RunRecords, spans: Sequence[Span]) -> dict[str, Any]:
    """Learning rate, gradient norm and speed."""
    names = sorted({key for record in records.train for key in record if key.startswith("lr/")})
    tones = ("main", "second", "third")
    rates = [
        _curve(records, key, key.removeprefix("lr/"), tones[min(i, len(tones) - 1)])
        for i, key in enumerate(names)
    ]
    norm = _curve(records, "grad_norm", "norm", "main")
    speed = _curve(records, "images_per_second", "images/s", "main")
    return {
        "rate_chart": line_chart(rates, title="Learning rate by step", spans=spans, y_range=(0, None)),
        "norm_chart": line_chart(
            [norm], title="Gradient norm before clipping by step", spans=spans, y_range=(0, None)
        ),
        "speed_chart": line_chart([speed], title="Images per second by step", spans=spans, y_range=(0, None)),
    }


def weight_charts(records: RunRecords) -> dict[str, Any]:
    """The sample weights of each source, and the effective sample size."""
    by_domain: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in records.samples if records.config.ppar.enabled else ():
        if math.isfinite(entry.weight):
            by_domain[entry.domain].append((entry.step, entry.weight))
    spans = stage_spans(records)
    bands = {name: _weight_band(points) for name, points in sorted(by_domain.items())}
    top = max((max(band.high or [1.0]) for band in bands.values()), default=1.0)
    charts = [
        {
            "name": name,
            "chart": line_chart(
                [band],
                title=f"Sample weights of {name} by step",
                spans=spans,
                y_range=(0, 1.08 * top),
                reference=1.0,
            ),
        }
        for name, band in bands.items()
    ]
    ess = _curve(records, "ess_ratio", "of the batch", "main")
    chart = line_chart([ess], title="Effective sample size by step", spans=spans, y_range=(0, 1.05))
    return {"weight_charts": charts, "ess_chart": chart}


def _weight_band(points: list[tuple[int, float]]) -> Series:
    """Median and middle 80 % of the weights of neighbouring steps."""
    steps = sorted({step for step, _ in points})
    width = math.ceil(len(steps) / _WEIGHT_POINTS)
    bin_of = {step: i // width for i, step in enumerate(steps)}
    bins: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for step, weight in points:
        bins[bin_of[step]].append((step, weight))
    rows = []
    for _, part in sorted(bins.items()):
        middle = statistics.fmean(step for step, _ in part)
        rows.append((middle, *np.quantile([weight for _, weight in part], (0.5, 0.1, 0.9)).tolist()))
    x, median, low, high = (list(column) for column in zip(*rows, strict=True))
    return Series("median", x, median, "main", low, high)


def prototype_charts(records: RunRecords, classes: Sequence[str]) -> dict[str, Any]:
    """Cosines between prototypes, their likeness to the text, and their drift."""
    missing = line_chart([], title="")
    similarity = [records.last(f"prototype_text_similarity/{name}") for name in classes]
    recorded = any(value is not None for value in similarity)
    values = [math.nan if value is None else float(value) for value in similarity]
    keys = [f"prototype_drift/{name}" for name in classes]
    drift = [
        _curve_over(records, keys, statistics.fmean, "mean of classes", "main"),
        _curve_over(records, keys, max, "largest", "second"),
    ]
    cosines = final_cosines(records.run, records.config)
    return {
        "matrix_chart": matrix_chart(cosines, classes, title="Cosines between visual text prototypes")
        if cosines
        else missing,
        "similarity_chart": bar_chart(values, classes, title="Cosine of VTP and OTP by class")
        if recorded
        else missing,
        "drift_chart": line_chart(drift, title="Prototype drift by step", y_range=(0, None), height=190),
    }


def held_out_curves(records: RunRecords) -> list[Series]:
    """Mean mIoU over the sources in the accent, each source behind it; per cent."""
    mean = [(r["step"], 100 * r["miou"]) for r in records.evals if is_figure(r.get("miou"))]
    if not mean:
        return []
    series = []
    for name in sorted({name for r in records.evals for name in r.get("domains", {})}):
        points = [
            (r["step"], 100 * r["domains"][name])
            for r in records.evals
            if is_figure(r.get("domains", {}).get(name))
        ]
        series.append(Series(name, *bin_mean(*_columns(points)), "context"))
    main = Series("mean", *bin_mean(*_columns(mean)), "main")
    return [main, *series] if len(series) > 1 else [main]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def stage_spans(records: RunRecords) -> list[Span]:
    """The stages up to the last logged step, as planned or, where the log says otherwise, as logged."""
    if not records.config.ppar.enabled:
        return []
    steps = [(r["step"], int(r["stage"])) for r in records.train if is_figure(r.get("stage"))]
    if not steps:
        return []
    planned, last = planned_stages(records.config), steps[-1][0]
    if all(any(span.start < step <= span.end and n == stage for n, span in planned) for step, stage in steps):
        return [_band(n, span.start, min(span.end, last)) for n, span in planned if span.start < last]
    groups = [(stage, [step for step, _ in part]) for stage, part in groupby(steps, key=lambda item: item[1])]
    edges = [part[0] for _, part in groups] + [last]
    return [_band(stage, edges[i], edges[i + 1]) for i, (stage, _) in enumerate(groups)]


def _band(stage: int, start: float, end: float) -> Span:
    return Span(STAGES[stage], start, end, str(stage + 1))


def _curve(records: RunRecords, key: str, label: str, tone: str) -> Series:
    return Series(label, *bin_mean(*records.series(key)), tone)


def _curve_over(
    records: RunRecords,
    keys: Sequence[str],
    reduce: Callable[[list[float]], float],
    label: str,
    tone: str,
) -> Series:
    """One figure of several, over the steps that logged any of them."""
    steps, values = [], []
    for record in records.train:
        finite = [record[key] for key in keys if is_figure(record.get(key))]
        if finite:
            steps.append(float(record["step"]))
            values.append(reduce(finite))
    return Series(label, *bin_mean(steps, values), tone)

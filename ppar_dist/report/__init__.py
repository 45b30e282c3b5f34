"""The report of a run: one HTML file that needs nothing else, readable offline, in light and dark."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ppar_dist import __version__
from ppar_dist.checkpoint import write_atomically
from ppar_dist.class_sets import class_set
from ppar_dist.config.load import dump_config
from ppar_dist.report.charts import Series, Span, bar_chart, bin_mean, line_chart, matrix_chart
from ppar_dist.report.cleaning import is_figure
from ppar_dist.report.images import distrusted_regions, example_groups, reliability_groups
from ppar_dist.report.prototypes import final_cosines
from ppar_dist.report.records import RunRecords
from ppar_dist.report.timeline import STAGES, timeline
from ppar_dist.run import paths

MISSING = "\N{EN DASH}"
TEMPLATE = Path(__file__).with_name("template.html")
_MOST_EVENTS = 200  # rows of the table of faults; of more, the first and the last are shown
_WEIGHT_POINTS = 60  # points of a weight curve: each bins the samples of neighbouring steps


def write_report(run: Path) -> Path:
    """Write ``<run>/report.html`` from what the run recorded; parts that are missing are named so.

    Raises:
        UserError: ``run`` is not a run folder.
    """
    records = RunRecords.read(run)
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**_content(records))
    path = records.run / paths.REPORT
    write_atomically(path, page)
    return path


def _content(records: RunRecords) -> dict[str, Any]:
    config = records.config
    classes = class_set(config.data.classes)
    swatches = [
        {"name": name, "colour": "#{:02x}{:02x}{:02x}".format(*colour)}
        for name, colour in zip(classes.classes, classes.palette, strict=True)
    ]
    return {
        "title": config.run.name or records.run.resolve().name,
        "version": __version__,
        "summary": _summary(records),
        "sample_stride": records.sample_stride,
        "has_ppar": config.ppar.enabled,
        "timeline": timeline(records),
        "unreadable": records.unreadable,
        "tiles": _tiles(records),
        "classes": swatches,
        "evaluated": (records.results or {}).get("checkpoint"),
        "table": _table(records, classes.classes),
        "examples": example_groups(records),
        "reliable": reliability_groups(records, classes),
        "regions": distrusted_regions(records),
        **_events(records),
        "config": dump_config(config),
        **_training_charts(records),
        **_weight_charts(records),
        **_prototype_charts(records, classes.classes),
    }


def _summary(records: RunRecords) -> str:
    config = records.config
    names = [source.name for source in config.data.sources]
    method = "PPAR" if config.ppar.enabled else "plain fine-tuning (PPAR off)"
    tower = f"{config.model.backbone.name} ({config.model.backbone.kind})"
    return f"{method} · {tower} with {config.model.decoder.kind.upper()} · trained on {', '.join(names)}"


def _tiles(records: RunRecords) -> list[dict[str, Any]]:
    tiles = []
    for name, item in _targets(records).items():
        tiles.append({"name": f"mIoU on {name} (unseen)", "value": _percent(item.get("miou")), "key": True})
    held = _held_out(records)
    if held and held[0].y:
        tiles.append({"name": "mIoU on held-out sources", "value": f"{held[0].y[-1]:.1f}", "key": False})
    steps = records.last("step")
    if steps is not None:
        tiles.append({"name": f"of {records.config.train.steps} steps", "value": f"{steps}", "key": False})
    seen = records.last("samples_seen")
    if seen is not None:
        tiles.append({"name": "samples seen", "value": f"{seen:,}".replace(",", " "), "key": False})
    tiles += _speed_tiles(records)
    stage = records.last("stage")
    if stage is not None and records.config.ppar.enabled:
        tiles.append({"name": "alignment stage reached", "value": STAGES[int(stage)], "key": False})
    return tiles


def _speed_tiles(records: RunRecords) -> list[dict[str, Any]]:
    """What the machine made of its time; only what was recorded."""
    tiles = []
    goodput = None if records.time is None else records.time.ratio()
    if goodput is not None:
        tiles.append({"name": "% goodput", "value": f"{100 * goodput:.1f}", "key": False})
    images = records.series("images_per_second")[1]
    if images:
        value = f"{statistics.median(images):,.1f}".replace(",", " ")
        tiles.append({"name": "images per second, median", "value": value, "key": False})
    mfu = records.series("mfu")[1]
    if mfu:
        tiles.append({"name": "% MFU, median", "value": f"{100 * statistics.median(mfu):.1f}", "key": False})
    memory = records.series("device_memory_peak")[1]
    if memory:
        value = f"{max(memory) / 2**30:.1f}"
        tiles.append({"name": "GiB of the first GPU at most", "value": value, "key": False})
    return tiles


def _events(records: RunRecords) -> dict[str, Any]:
    """Faults and resumes in the order in which they came; a long run of skipped steps as one row."""
    rows: list[dict[str, Any]] = []
    for event in records.events:
        row = {key: event[key] for key in ("time", "kind", "step", "text")}
        if rows and row["kind"] == rows[-1]["kind"] == "skipped" and row["text"] == rows[-1]["text"]:
            rows[-1]["until"] = row["step"]
        else:
            rows.append(row)
    half = _MOST_EVENTS // 2
    left_out = max(0, len(rows) - _MOST_EVENTS)
    shown = [*rows[:half], *rows[-half:]] if left_out else rows
    events = [
        {
            "time": _moment(row["time"]),
            "step": f"{row['step']} to {row['until']}" if "until" in row else str(row["step"]),
            "kind": str(row["kind"]),
            "text": str(row["text"]),
        }
        for row in shown
    ]
    return {"events": events, "events_left_out": left_out, "events_half": half}


def _moment(seconds: Any) -> str:
    """A time stamp in UTC, to the second."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (TypeError, ValueError, OverflowError, OSError):  # not a number, or beyond what a date can say
        return MISSING


def _targets(records: RunRecords) -> dict[str, dict[str, Any]]:
    targets = (records.results or {}).get("targets")
    return targets if isinstance(targets, dict) else {}


def _table(records: RunRecords, classes: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    for name, item in _targets(records).items():
        values = [item.get("iou", {}).get(label) for label in classes]
        cells = [{"text": _percent(value), "ratio": f"{value or 0:.3f}"} for value in values]
        accuracy, miou = _percent(item.get("pixel_accuracy")), _percent(item.get("miou"))
        left_out = item.get("left_out")
        images = f"{item.get('images')} ({left_out} left out)" if left_out else item.get("images")
        name += " (trained on)" if item.get("trained_on") else ""
        rows.append({"name": name, "images": images, "miou": miou, "accuracy": accuracy, "cells": cells})
    return rows


def _training_charts(records: RunRecords) -> dict[str, Any]:
    spans = _stage_spans(records)
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
            _held_out(records), title="Held-out source mIoU by step", spans=spans, width=1040, height=260
        ),
    }


def _weight_charts(records: RunRecords) -> dict[str, Any]:
    by_domain: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for entry in records.samples if records.config.ppar.enabled else ():
        if math.isfinite(entry.weight):
            by_domain[entry.domain].append((entry.step, entry.weight))
    spans = _stage_spans(records)
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


def _prototype_charts(records: RunRecords, classes: Sequence[str]) -> dict[str, Any]:
    missing = line_chart([], title="")
    similarity = [records.last(f"prototype_text_similarity/{name}") for name in classes]
    recorded = any(value is not None for value in similarity)
    values = [math.nan if value is None else float(value) for value in similarity]
    keys = [f"prototype_drift/{name}" for name in classes]
    drift = [
        _curve_over(records, keys, statistics.fmean, "mean of classes", "main"),
        _curve_over(records, keys, max, "largest", "second"),
    ]
    cosines = final_cosines(records)
    return {
        "matrix_chart": matrix_chart(cosines, classes, title="Cosines between visual text prototypes")
        if cosines
        else missing,
        "similarity_chart": bar_chart(values, classes, title="Cosine of VTP and OTP by class")
        if recorded
        else missing,
        "drift_chart": line_chart(drift, title="Prototype drift by step", y_range=(0, None), height=190),
    }


def _held_out(records: RunRecords) -> list[Series]:
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


def _stage_spans(records: RunRecords) -> list[Span]:
    """Stretches of steps that share a stage, as logged; none for the baseline."""
    if not records.config.ppar.enabled:
        return []
    steps = [(r["step"], int(r["stage"])) for r in records.train if is_figure(r.get("stage"))]
    groups = [(stage, [step for step, _ in part]) for stage, part in groupby(steps, key=lambda item: item[1])]
    edges = [part[0] for _, part in groups] + [groups[-1][1][-1]] if groups else []
    return [Span(STAGES[stage], edges[i], edges[i + 1]) for i, (stage, _) in enumerate(groups)]


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


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if is_figure(value) else MISSING

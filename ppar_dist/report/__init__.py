"""The report of a run: one HTML file that needs nothing else, readable offline, in light and dark."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2

from ppar_dist import __version__
from ppar_dist.checkpoint import write_atomically
from ppar_dist.class_sets import recorded_class_set
from ppar_dist.config.load import dump_config
from ppar_dist.report.against import comparison
from ppar_dist.report.cleaning import is_figure
from ppar_dist.report.confusion import confusion_charts
from ppar_dist.report.curves import held_out_curves, prototype_charts, training_charts, weight_charts
from ppar_dist.report.images import (
    distrusted_regions,
    example_groups,
    meanings_of_labels,
    reliability_groups,
)
from ppar_dist.report.records import RunRecords
from ppar_dist.report.timeline import STAGES, stage_list, timeline
from ppar_dist.run import paths

MISSING = "\N{EN DASH}"
TEMPLATE = Path(__file__).with_name("template.html")
_MOST_EVENTS = 200  # rows of the table of faults; of more, the first and the last are shown


def write_report(run: Path, against: Path | None = None) -> Path:
    """Write ``<run>/report.html`` from what the run recorded; parts that are missing are named so.

    Args:
        run: its folder.
        against: the folder of a run that it is compared with.

    Raises:
        UserError: ``run`` or ``against`` is not a run folder.
    """
    records = RunRecords.read(run)
    other = RunRecords.read(against) if against is not None else None
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(**_content(records, other))
    path = records.run / paths.REPORT
    write_atomically(path, page)
    return path


def _content(records: RunRecords, other: RunRecords | None) -> dict[str, Any]:
    config = records.config
    classes = recorded_class_set(config.data.classes, records.run)
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
        "stages": stage_list(records),
        "against": comparison(records, other) if other is not None else None,
        "confusions": confusion_charts(records, classes.classes),
        "unreadable": records.unreadable,
        "tiles": _tiles(records),
        "classes": swatches,
        "evaluated": (records.results or {}).get("checkpoint"),
        "table": _table(records, classes.classes),
        "examples": example_groups(records),
        "reliable": reliability_groups(records, classes),
        "regions": distrusted_regions(records),
        "meanings": meanings_of_labels(records),
        **_events(records),
        "config": dump_config(config),
        **training_charts(records),
        **weight_charts(records),
        **prototype_charts(records, classes.classes),
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
    held = held_out_curves(records)
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
        name += f" ({item['scored']})" if item.get("scored") else ""
        rows.append({"name": name, "images": images, "miou": miou, "accuracy": accuracy, "cells": cells})
    return rows


def _percent(value: Any) -> str:
    return f"{100 * value:.1f}" if is_figure(value) else MISSING

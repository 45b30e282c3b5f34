"""Pictures of the report: predictions beside labels, and the most and least reliable samples."""

from __future__ import annotations

import base64
import io
import math
import statistics
from collections import defaultdict
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ppar_dist.class_sets import ClassSet
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.sample import decode_label, decode_pixels, open_image
from ppar_dist.data.sources import node_storage
from ppar_dist.errors import UserError
from ppar_dist.evaluation.palette_images import palette_image
from ppar_dist.report.charts import signed
from ppar_dist.report.cleaning import SampleRecord
from ppar_dist.report.records import RunRecords
from ppar_dist.run import paths

_KINDS = ("image", "label", "prediction")
_EXTREMES = 8  # samples shown at either end
_REGIONS = 24  # of an audit
_FULL, _SMALL = 2048, 420  # pixels of an example's width at most; small ones when the others fill their room
_ROOM = 12_000_000  # characters of all examples in full size
# What Pillow raises for damaged files, beside OSError: sizes beyond its limit, broken chunks.
_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def example_groups(records: RunRecords) -> list[dict[str, Any]]:
    """Examples by target, each with its three pictures as data URIs, if their files are there."""
    folder = paths.predictions(records.run)
    room, groups = _Room(), []
    for target, members in groupby(records.examples, key=lambda entry: entry.get("target")):
        items = [item for item in (_example(folder, entry, room) for entry in members) if item]
        if items:
            groups.append({"target": target, "items": items})
    return groups


def distrusted_regions(records: RunRecords) -> list[dict[str, Any]]:
    """The first regions of the last audit, with their pictures as data URIs, if their files are there."""
    shown = []
    for region in records.regions[:_REGIONS]:
        picture = _open_picture(paths.audit(records.run) / Path(region["picture"]).name)
        if picture is not None:
            shown.append({**region, "weight": f"{region['weight']:.2f}", "image": data_uri(picture, 640)})
    return shown


def meanings_of_labels(records: RunRecords) -> list[dict[str, str]]:
    """What the labels that the last audit distrusts may stand for, the likeliest class first."""
    shown = []
    for row in records.meanings:
        ranked = sorted(row["classes"].items(), key=lambda each: -each[1])
        classes = ", ".join(f"{name} {value:.2f}" for name, value in ranked)
        shown.append({"domain": row["domain"], "label": row["label"], "classes": classes})
    return shown


def reliability_groups(records: RunRecords, classes: ClassSet) -> list[dict[str, Any]]:
    """The samples of lowest and of highest mean reliability, seen with weights in use."""
    samples = _mean_by_sample(records)
    if not samples:
        return []
    samples.sort(key=lambda item: item["mean"])
    count = min(_EXTREMES, len(samples) // 2) or 1
    opened = _Sources(records, classes)
    groups = (("Least reliable", samples[:count]), ("Most reliable", samples[: -count - 1 : -1]))
    return [{"name": name, "items": [opened.show(item) for item in items]} for name, items in groups]


def data_uri(picture: Image.Image, width: int = 420) -> str:
    """A picture as a data URI: palette pictures as PNG with hard edges, photographs as JPEG."""
    indexed = picture.mode == "P"
    if picture.width > width:
        size = (width, max(1, round(picture.height * width / picture.width)))
        picture = picture.resize(size, Image.Resampling.NEAREST if indexed else Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if indexed:
        picture.save(buffer, "PNG", optimize=True)
    else:
        picture.convert("RGB").save(buffer, "JPEG", quality=82)
    kind = "png" if indexed else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


class _Room:
    """Gives examples their full size as long as all of them stay below a limit."""

    def __init__(self) -> None:
        self._left = _ROOM

    def uri(self, picture: Image.Image) -> str:
        """The picture as a data URI."""
        uri = data_uri(picture, _FULL)
        if len(uri) > self._left:
            return data_uri(picture, _SMALL)
        self._left -= len(uri)
        return uri


def _example(folder: Path, entry: dict[str, Any], room: _Room) -> dict[str, Any] | None:
    uris = {}
    for kind in _KINDS:
        picture = _open_picture(folder / Path(str(entry.get(kind, ""))).name)  # nothing outside the folder
        if picture is None:
            return None
        uris[kind] = room.uri(picture)
    accuracy = entry.get("accuracy")
    text = f"{100 * accuracy:.1f} %" if isinstance(accuracy, (int, float)) else "\N{EN DASH}"
    return {"key": entry.get("key"), "accuracy": text, **uris}


def _open_picture(path: Path) -> Image.Image | None:
    """A picture in memory, or None where its file is missing or damaged."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except _UNREADABLE:
        return None


def _mean_by_sample(records: RunRecords) -> list[dict[str, Any]]:
    """One entry per (domain, sample): mean reliability and weight over the steps that weighted samples."""
    start = records.config.ppar.reweighting.start_stage
    weighted = (r["step"] for r in records.train if isinstance(r.get("stage"), int) and r["stage"] >= start)
    first = min(weighted, default=0)
    seen: dict[tuple[str, int], list[SampleRecord]] = defaultdict(list)
    for entry in records.samples:
        if entry.step >= first and math.isfinite(entry.reliability + entry.weight):
            seen[entry.domain, entry.sample].append(entry)
    return [
        {
            "domain": domain,
            "sample": sample,
            "key": entries[-1].key,
            "mean": statistics.fmean(entry.reliability for entry in entries),
            "weight": statistics.fmean(entry.weight for entry in entries),
            "seen": len(entries),
        }
        for (domain, sample), entries in seen.items()
    ]


class _Sources:
    """The source domains of a run, opened when asked for; shards that have moved are done without."""

    def __init__(self, records: RunRecords, classes: ClassSet) -> None:
        self.root, self.node = records.config.data.root, node_storage(records.config)
        self.known = {source.name for source in records.config.data.sources}
        self.classes = classes
        self._opened: dict[str, DomainIndex | None] = {}

    def show(self, item: dict[str, Any]) -> dict[str, Any]:
        """A sample as the page shows it: figures as text, and pictures where its shard is still there."""
        pictures = self._pictures(item["domain"], item["sample"])
        figures = {"weight": f"{item['weight']:.2f}", "reliability": signed(item["mean"])}
        return {**item, **figures, **pictures}

    def _pictures(self, domain: str, sample: int) -> dict[str, str | None]:
        index = self._open(domain)
        if index is None or not 0 <= sample < len(index):
            return {"image": None, "label": None}
        try:
            raw = index.read(sample)
            photo = decode_pixels(open_image(raw.image, raw.where), raw.where)
            label = decode_label(raw.label, raw.where)
        except UserError:
            return {"image": None, "label": None}  # a bad sample: named in the report, without its picture
        return {
            "image": data_uri(photo, 230),
            "label": data_uri(palette_image(np.asarray(label), self.classes), 230),
        }

    def _open(self, domain: str) -> DomainIndex | None:
        if domain not in self.known:
            return None
        if domain not in self._opened:
            try:
                self._opened[domain] = DomainIndex.open(self.root / domain, node=self.node)
            except UserError:
                self._opened[domain] = None
        return self._opened[domain]

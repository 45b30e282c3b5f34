"""Scores of a checkpoint: as a table, JSON and CSV, and in the files that a run keeps.

A score belongs to a checkpoint, a target, its domain and a protocol: it is replaced by the same of these
alone. A target that was another domain before keeps its score under NAME@DOMAIN.
``results.json`` holds a table, and tables of other protocols and of earlier checkpoints below it;
``results.csv`` has a line for each score in it.
"""

from __future__ import annotations

import csv
import fcntl
import io
import json
import logging
import os
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import write_atomically

_TRAINED_ON = "trained on this domain: no score of domains it never saw"
_COLUMNS = ("run", "checkpoint", "step", "protocol", "target", "domain", "images", "left_out", "trained_on")
_FIGURES = ("miou", "pixel_accuracy")

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TargetResult:
    """What a checkpoint scores on one domain; ratios from 0 to 1, None for a class the domain lacks."""

    domain: str
    images: int
    miou: float | None
    pixel_accuracy: float | None
    iou: dict[str, float | None]
    left_out: int = 0  # samples that could not be used, and are not among the images
    trained_on: bool = False  # a source of the checkpoint: the score says nothing of domains it never saw
    stored: str = ""  # how `prepare` encoded the images again; "" where it did not, or made another
    confusion: list[list[int]] | None = None  # pixels; rows are labels, columns predictions
    fingerprint: str = ""  # of the domain's data; "" in tables of earlier versions
    scored: str = ""  # "16 of 19 classes" and their class set, where the domain has not all; "" where it has


@dataclass(frozen=True)
class Results:
    """The table of one checkpoint over its targets, all of them scored by one protocol."""

    run: str
    checkpoint: str
    step: int
    classes: tuple[str, ...]
    targets: dict[str, TargetResult]
    protocol: str = ""  # in one line

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in ``results.json``."""
        return asdict(self) | {"mean_miou": self.mean_miou()}

    def to_json(self) -> str:
        """``to_dict`` as JSON text."""
        return json.dumps(self.to_dict(), indent=1)

    def to_csv(self) -> str:
        """The lines of ``results.csv``."""
        return _csv([self.to_dict()])

    def write(self, path: Path) -> None:
        """Replace ``path`` by the JSON text."""
        write_atomically(path, self.to_json() + "\n")

    def mean_miou(self) -> float | None:
        """The mean over the targets that the checkpoint was not trained on; None without any."""
        return _mean({name: asdict(item) for name, item in self.targets.items()})

    def table(self) -> str:
        """Plain text columns for a terminal: per cent, ``-`` where a class does not occur.

        How many samples were left out is a column if any were. Images that are not as they came are told:
        their scores are not those of the published protocol.
        """
        some = any(item.left_out for item in self.targets.values())
        head = ["target", "images", *(["left out"] if some else []), "mIoU", "pixel acc", *self.classes]
        rows = [
            [name, str(item.images), *([str(item.left_out)] if some else [])]
            + [_percent(item.miou), _percent(item.pixel_accuracy)]
            + [_percent(item.iou.get(label)) for label in self.classes]
            for name, item in self.targets.items()
        ]
        if sum(not item.trained_on for item in self.targets.values()) > 1:
            rows.append(["mean", *[""] * (len(head) - len(self.classes) - 3), _percent(self.mean_miou())])
        lines = columns([head, *rows])
        lines.append(f"{self.run}: {self.checkpoint}, step {self.step}; {self.protocol}".rstrip("; "))
        lines += [f"{name}: {_TRAINED_ON}" for name, item in self.targets.items() if item.trained_on]
        lines += [f"{name}: scored on {item.scored}" for name, item in self.targets.items() if item.scored]
        lines += [f"{name}: images are {item.stored}" for name, item in self.targets.items() if item.stored]
        return "\n".join(lines)


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells as lines of text; the first column to the left, others to the right."""
    width = max(map(len, rows))
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(width)]
    lines = []
    for first, *cells in rows:
        figures = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=False))
        lines.append("  ".join([first.ljust(widths[0]), *figures]).rstrip())
    return lines


def keep_results(file: Path, results: Results, own: str = "", before: str = "") -> None:
    """Add a table to a run's file of results, which loses none, also where two evaluations end at once.

    A target is replaced only by the same name, domain, checkpoint and protocol; where the name was another
    domain's, the score before is kept as NAME@DOMAIN, and the log says so. The newest checkpoint has
    the file, its tables by other protocols are its "protocols", and the tables of older ones its "earlier",
    newest first. A CSV file beside it holds the same.

    Args:
        file: ``results.json``.
        results: to be added.
        own: the protocol of the run's configuration, whose table of a checkpoint is its first.
        before: the protocol of tables that earlier versions wrote, which name none.
    """
    with _held(file.parent):
        new, tables = results.to_dict(), _tables_to_keep(file, before)
        for number, table in enumerate(tables):
            if _identity(table) == _identity(new):
                new["targets"] = _joined(table.get("targets", {}), new["targets"])
                new["mean_miou"] = _mean(new["targets"])
                tables[number] = new
                break
        else:
            tables.append(new)
        tables.sort(key=lambda table: table.get("protocol") != own)  # stable
        tables.sort(key=_step, reverse=True)
        first, *others = tables
        same = [table for table in others if _identity(table)[:2] == _identity(first)[:2]]
        earlier = [table for table in others if table not in same]
        nested = ({"protocols": same} if same else {}) | ({"earlier": earlier} if earlier else {})
        write_atomically(file, json.dumps(first | nested, indent=1) + "\n")
        write_atomically(file.with_suffix(".csv"), _csv(tables))


def read_tables(file: Path, before: str = "") -> list[dict[str, Any]]:
    """The tables in a file of results, the newest checkpoint's first; none where there is no file.

    Args:
        file: ``results.json``.
        before: the protocol of tables that name none.

    Raises:
        ValueError: it holds another thing.
    """
    if not file.exists():
        return []
    first = json.loads(file.read_text("utf-8"))
    try:
        tables = [first, *first.pop("protocols", []), *first.pop("earlier", [])]
        if all(isinstance(table.get("targets", {}), dict) for table in tables):
            return [{**table, "protocol": table.get("protocol", before)} for table in tables]
    except (TypeError, AttributeError):
        pass
    raise ValueError("it holds no tables")


def _joined(before: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The targets of a table with new scores, and none of another domain lost."""
    kept = dict(before)
    for name, item in new.items():
        kept.pop(f"{name}@{item['domain']}", None)  # the name is this domain's again
        there = kept.get(name)
        if there is None:
            continue
        if there.get("domain") != item["domain"]:
            aside = f"{name}@{there.get('domain')}"
            kept[aside] = there
            log.warning(
                "target %s was domain %s before, and is %s now: the score before is kept as %s",
                *(name, there.get("domain"), item["domain"], aside),
            )
        elif there.get("fingerprint", "") not in ("", item["fingerprint"]):
            log.warning("the data of target %s have changed: the score before is replaced", name)
    return kept | dict(new)


def _tables_to_keep(file: Path, before: str) -> list[dict[str, Any]]:
    try:
        return read_tables(file, before)
    except ValueError:
        aside = file.with_name(f"{file.name}.damaged")
        log.warning("%s cannot be read; it is kept as %s", file, aside.name)
        file.replace(aside)
        return []


@contextmanager
def _held(folder: Path) -> Iterator[None]:
    """One evaluation at a time writes the block's files; storage without locks does without."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _identity(table: Mapping[str, Any]) -> tuple[int, str, str]:
    return _step(table), str(table.get("checkpoint")), str(table.get("protocol"))


def _step(table: Mapping[str, Any]) -> int:
    step = table.get("step")
    return step if isinstance(step, int) else -1


def _mean(targets: Mapping[str, Mapping[str, Any]]) -> float | None:
    found = [item.get("miou") for item in targets.values() if not item.get("trained_on")]
    figures = [miou for miou in found if isinstance(miou, (int, float))]
    return statistics.fmean(figures) if figures else None


def _csv(tables: Iterable[Mapping[str, Any]]) -> str:
    """A line for each target of each table; ratios from 0 to 1, nothing where there is no figure."""
    rows = [
        {**{key: table.get(key) for key in _COLUMNS}, **item, "target": name}
        for table in tables
        for name, item in table.get("targets", {}).items()
    ]
    labels = dict.fromkeys(label for row in rows for label in row.get("iou") or {})
    figures = (*_FIGURES, *(["scored"] if any(row.get("scored") for row in rows) else []))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_COLUMNS, *figures, *(f"iou {label}" for label in labels)])
    for row in rows:
        iou = row.get("iou") or {}
        writer.writerow(
            [*(row.get(key) for key in (*_COLUMNS, *figures)), *(iou.get(each) for each in labels)]
        )
    return text.getvalue()


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"

"""``RUN/metrics.csv``: a row for each record, a column for each figure, made again at each start."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppar_dist.run import paths
from ppar_dist.trackers.tracker import About, Point, TakesBack


class CsvFile:
    """Appends rows; a figure that was not there before gets a column, for which the file is replaced."""

    takes_back = TakesBack.ALL

    def __init__(self, about: About) -> None:
        """Nothing is written before ``open``."""
        self._path, self._steps = paths.metrics_table(about.run), about.steps
        self._columns: list[str] = []

    def open(self, own: dict[str, Any], first: int) -> None:
        """Begin an empty table."""
        self._columns = ["step"]
        self._replace([])

    def write(self, points: Sequence[Point]) -> None:
        """Append a row for each point."""
        known = set(self._columns)
        new = dict.fromkeys(name for point in points for name in point.values if name not in known)
        if new:
            with self._path.open(newline="", encoding="utf-8") as file:
                rows: list[Mapping[str, Any]] = list(csv.DictReader(file))
            self._columns += new
            self._replace(rows)
        with self._path.open("a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self._columns).writerows({"step": step, **row} for step, row in points)

    def finish(self, scores: Mapping[str, float]) -> None:
        """Append the scores at the last step."""
        self.write([Point(self._steps, scores)])

    def close(self) -> None:
        """Do nothing: the file is open only while it is written."""

    def _replace(self, rows: Sequence[Mapping[str, Any]]) -> None:
        temporary: Path = self._path.with_name(f".{self._path.name}")
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._columns)
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self._path)

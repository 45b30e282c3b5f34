"""The table of a sweep: mean and spread over seeds, and the difference to the baseline of the same seeds."""

from __future__ import annotations

import csv
import io
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ppar_dist.config.schema import Config
from ppar_dist.evaluation.results import columns
from ppar_dist.files.jsonl import parse_json, records
from ppar_dist.run import paths
from ppar_dist.run.facts import last_step
from ppar_dist.sweep.grid import Planned
from ppar_dist.sweep.statistics import LEVEL, Difference, paired_difference, spread

MEAN, HELD_OUT = "mean", "held-out sources"
_NOTE = (
    "mIoU in per cent, mean ± standard deviation over seeds. Differences in points, paired by seed, with "
    f"their {100 * LEVEL:.0f} % interval (Student's)."
)


@dataclass(frozen=True)
class Line:
    """A row of the table: of each column the mIoU by seed, and the difference to the baseline."""

    name: str
    baseline: str | None
    missing: tuple[int, ...]  # seeds whose run is not finished
    scores: Mapping[str, Mapping[int, float]]  # column → seed → mIoU
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Table:
    """What a sweep has shown so far."""

    columns: tuple[str, ...]  # targets, their mean if there are several, held-out sources
    lines: tuple[Line, ...]

    def text(self) -> str:
        """For a terminal."""
        compared = [] if all(not line.differences for line in self.lines) else list(self.columns)
        rows = [["run", "seeds", *self.columns, *(f"Δ {column}" for column in compared)]]
        for line in self.lines:
            cells = [_spread(line.scores.get(column)) for column in self.columns]
            cells += [str(line.differences.get(column, "")) for column in compared]
            rows.append([line.name, str(max(map(len, line.scores.values()), default=0)), *cells])
        missing = ((line.name, ", ".join(map(str, line.missing))) for line in self.lines if line.missing)
        return "\n".join(
            [*columns(rows), _NOTE, *(f"{name}: not finished: seed {seeds}" for name, seeds in missing)]
        )

    def to_json(self) -> str:
        """All figures, as ratios."""
        rows = [self._plain(line) for line in self.lines]
        return json.dumps({"columns": self.columns, "level": LEVEL, "rows": rows}, indent=1)

    def to_csv(self) -> str:
        """A line for each row and column."""
        buffer = io.StringIO()
        names = ("run", "column", "seeds", "mean", "deviation", "baseline", "difference", "low", "high")
        writer = csv.DictWriter(buffer, names, lineterminator="\n")
        writer.writeheader()
        for line in self.lines:
            for column, found in self._plain(line)["scores"].items():
                difference = found.pop("difference") or {}
                of_line = {"run": line.name, "column": column, "baseline": line.baseline}
                writer.writerow({**of_line, **found, **difference, "seeds": len(found["seeds"])})
        return buffer.getvalue()

    def _plain(self, line: Line) -> dict[str, Any]:
        scores = {}
        for column in self.columns:
            if by_seed := line.scores.get(column):
                values, difference = list(by_seed.values()), line.differences.get(column)
                scores[column] = {
                    "seeds": dict(by_seed),
                    "mean": statistics.mean(values),
                    "deviation": statistics.stdev(values) if len(values) > 1 else None,
                    "difference": None if difference is None else _plain_difference(difference),
                }
        return {"run": line.name, "baseline": line.baseline, "missing": line.missing, "scores": scores}


def make_table(planned: Sequence[Planned]) -> Table:
    """The table of the runs that are finished."""
    by_row: dict[str, dict[str, dict[int, float]]] = {}
    missing: dict[str, list[int]] = {}
    for run in planned:
        found = scores_of(run.config)
        row = by_row.setdefault(run.row.name, {})
        missing.setdefault(run.row.name, [])
        if found is None:
            missing[run.row.name].append(run.seed)
        for column, value in (found or {}).items():
            row.setdefault(column, {})[run.seed] = value
    seen = {column for row in by_row.values() for column in row}
    targets = dict.fromkeys(name for run in planned for name in run.config.targets)
    shown = tuple(name for name in (*targets, MEAN, HELD_OUT) if name in seen)
    lines = []
    for name, baseline in {run.row.name: run.row.baseline for run in planned}.items():
        ours, theirs = by_row[name], by_row.get(baseline or "", {})
        pairs = {c: paired_difference(ours.get(c, {}), theirs.get(c, {})) for c in shown}
        differences = {column: pair for column, pair in pairs.items() if pair is not None}
        lines.append(Line(name, baseline, tuple(missing[name]), ours, differences))
    return Table(shown, tuple(lines))


def scores_of(config: Config) -> dict[str, float] | None:
    """mIoU of a finished run by column; None where it is not finished.

    The mean is over the targets that the configuration names, where there are several and all have a score.
    """
    run = config.run.dir
    step = last_step(config)
    if step is None or not (run / paths.REPORT).is_file():
        return None
    found: dict[str, float] = {}
    if config.targets:
        results = _read(run / paths.RESULTS)
        if results.get("step") != step:
            return None
        table = results.get("targets", {})
        values = {name: table.get(name, {}).get("miou") for name in config.targets}
        found = {name: float(value) for name, value in values.items() if isinstance(value, (int, float))}
        if len(found) == len(config.targets) > 1:
            found[MEAN] = statistics.mean(found.values())
    held_out = paths.metrics_file(run, "eval")
    for record in records(held_out) if held_out.is_file() else ():
        if record is not None and record["step"] == step and isinstance(record.get("miou"), float):
            found[HELD_OUT] = record["miou"]
    return found


def _spread(by_seed: Mapping[int, float] | None) -> str:
    return spread(list(by_seed.values())) if by_seed else "-"


def _read(file: Path) -> dict[str, Any]:
    """The object in a file; {} where there is none."""
    try:
        value = parse_json(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _plain_difference(difference: Difference) -> dict[str, float | None]:
    ends = {"low": difference.low, "high": difference.high}
    known = {name: None if math.isnan(value) else value for name, value in ends.items()}
    return {"difference": difference.value, **known}

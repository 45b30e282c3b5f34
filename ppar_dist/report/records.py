"""What a run has written about itself, read back for its report. Nothing but the run folder is needed."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ppar_dist.config import Config, ConfigError, load_config
from ppar_dist.examples import LISTING


class SampleRecord(NamedTuple):
    """A source sample at one logged step; nan where a figure was not recorded."""

    step: int
    domain: str
    sample: int  # number within its domain
    key: str
    weight: float
    reliability: float  # nats


@dataclass
class RunRecords:
    """The files of a run: each part is empty when it was not recorded.

    ``train`` and ``evals`` hold one record per step, oldest first; where a resume logged a step
    again, the later record counts.
    """

    run: Path
    config: Config
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)  # faults and resumes, as they came
    samples: list[SampleRecord] = field(default_factory=list)
    results: dict[str, Any] | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    unreadable: int = 0

    @classmethod
    def read(cls, run: Path) -> RunRecords:
        """Read a run folder; raises ConfigError when it is none."""
        run = Path(run)
        if not (run / "config.yaml").is_file():
            raise ConfigError(f"{run} is not a run: no config.yaml there; give the run.dir of a training run")
        records = cls(run, load_config(run / "config.yaml"))
        records.train = records._by_step(run / "metrics" / "train.jsonl")
        records.evals = records._by_step(run / "metrics" / "eval.jsonl")
        events = records._lines(run / "metrics" / "events.jsonl")
        records.events = [event for event in events if {"time", "kind", "step", "text"} <= event.keys()]
        records.samples = records._samples(run / "metrics" / "samples.jsonl")
        results = records._json(run / "results.json")
        records.results = results if isinstance(results, dict) else None
        records.examples = records._json(run / "predictions" / LISTING) or []
        return records

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one figure of the training log, where it was logged."""
        pairs = [(r["step"], r[key]) for r in self.train if isinstance(r.get(key), (int, float))]
        return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]

    def last(self, key: str) -> Any:
        """The newest value of a figure of the training log, or None."""
        return next((record[key] for record in reversed(self.train) if record.get(key) is not None), None)

    def _by_step(self, path: Path) -> list[dict[str, Any]]:
        found = {
            record["step"]: record for record in self._lines(path) if isinstance(record.get("step"), int)
        }
        return [found[step] for step in sorted(found)]

    def _samples(self, path: Path) -> list[SampleRecord]:
        """The largest file of a run: kept as tuples with shared names, not as parsed."""
        found: dict[int, list[SampleRecord]] = {}
        for record in self._lines(path):
            if isinstance(record.get("step"), int):
                entries = record.get("samples", [])
                found[record["step"]] = [_sample(record["step"], entry) for entry in entries]
        return [entry for step in sorted(found) for entry in found[step]]

    def _lines(self, path: Path) -> Iterator[dict[str, Any]]:
        if not path.exists():
            return
        with path.open(encoding="utf-8", errors="replace") as file:
            for line in file:
                try:
                    record = json.loads(line)
                except ValueError:
                    self.unreadable += 1  # cut off: a run that is being written, or was killed
                    continue
                if isinstance(record, dict):
                    yield record

    def _json(self, path: Path) -> Any:
        if not path.exists():
            return None
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.unreadable += 1
            return None


def _sample(step: int, entry: dict[str, Any]) -> SampleRecord:
    domain, key = sys.intern(str(entry.get("domain"))), sys.intern(str(entry.get("key")))
    weight, reliability = _figure(entry.get("weight")), _figure(entry.get("reliability"))
    return SampleRecord(step, domain, int(entry.get("sample", -1)), key, weight, reliability)


def _figure(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan

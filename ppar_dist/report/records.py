"""What a run has written about itself, read back for its report. Nothing but the run folder is needed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.files.jsonl import parse_json, records
from ppar_dist.report.cleaning import (
    SampleRecord,
    audited_regions,
    counts_matrix,
    eval_record,
    example_entries,
    label_meanings,
    results_table,
    sample_record,
    train_record,
)
from ppar_dist.report.thinning import Thinned
from ppar_dist.run import paths
from ppar_dist.run.goodput import Tally, tally

_MOST_RECORDS, _MOST_SAMPLES = 20_000, 400_000  # steps, and samples of all steps: some 100 MB of memory


@dataclass
class RunRecords:
    """The files of a run: each part is empty when it was not recorded.

    ``train`` and ``evals`` hold one record per step, oldest first; where a resume logged a step
    again, the later record counts; of very many, evenly chosen ones are kept, and the newest. What is not
    of the type its place asks for has been left out, and each record, line or file that lost something
    counts once in ``unreadable``.
    """

    run: Path
    config: Config
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)  # faults and resumes, as they came
    time: Tally | None = None  # None where it was not recorded
    samples: list[SampleRecord] = field(default_factory=list)
    results: dict[str, Any] | None = None
    examples: list[dict[str, Any]] = field(default_factory=list)
    regions: list[dict[str, Any]] = field(default_factory=list)  # of the last audit
    meanings: list[dict[str, Any]] = field(default_factory=list)  # of the labels that it distrusts
    confusion: list[list[int]] | None = None  # counts of the last evaluation; rows are labels
    unreadable: int = 0
    sample_stride: int = 1  # one of so many logged steps gave ``samples``

    @classmethod
    def read(cls, run: Path) -> RunRecords:
        """Read a run folder; raises UserError where it is not one."""
        run = Path(run)
        config = paths.config_file(run)
        if not config.is_file():
            raise UserError(f"{run} is not a run: no config.yaml there; give the run.dir of a training run")
        found = cls(run, load_config(config))
        found.train = found._by_step(paths.metrics_file(run, "train"), train_record)
        found.evals = found._by_step(paths.metrics_file(run, "eval"), eval_record)
        found._last_confusion(paths.metrics_file(run, "eval"))
        events = found._records(paths.metrics_file(run, "events"))
        found.events = [event for event in events if {"time", "kind", "step", "text"} <= event.keys()]
        found.time = tally(found._records(paths.metrics_file(run, "time")))
        found.samples = found._samples(paths.metrics_file(run, "samples"))
        found.results = found._json(run / paths.RESULTS, results_table)
        found.examples = found._json(paths.predictions(run) / paths.EXAMPLES, example_entries) or []
        found._read_audit(paths.audit(run) / paths.REGIONS)
        return found

    def series(self, key: str) -> tuple[list[float], list[float]]:
        """Steps and values of one figure of the training log, where it was logged."""
        pairs = [(r["step"], r[key]) for r in self.train if isinstance(r.get(key), (int, float))]
        return [float(step) for step, _ in pairs], [float(value) for _, value in pairs]

    def last(self, key: str) -> Any:
        """The newest value of a figure of the training log, or None."""
        return next((record[key] for record in reversed(self.train) if record.get(key) is not None), None)

    def _by_step(self, path: Path, clean: Callable[[dict[str, Any]], dict[str, Any]]) -> list[dict[str, Any]]:
        found: Thinned[dict[str, Any]] = Thinned(_MOST_RECORDS)
        for record in self._records(path):
            record.pop("confusion", None)  # see `_last_confusion`
            kept = clean(record)
            found.put(record["step"], {sys.intern(key): value for key, value in kept.items()})
            self.unreadable += kept != record
        return list(found.values())

    def _samples(self, path: Path) -> list[SampleRecord]:
        """The largest file of a run: kept as tuples with shared names, not as parsed."""
        found: Thinned[list[SampleRecord]] = Thinned(_MOST_SAMPLES, len)
        for record in self._records(path):
            entries = record.get("samples")
            if not isinstance(entries, list):
                self.unreadable += 1
                continue
            read = [sample_record(record["step"], entry) for entry in entries]
            self.unreadable += None in read
            found.put(record["step"], [entry for entry in read if entry is not None])
        self.sample_stride = found.stride
        return [entry for entries in found.values() for entry in entries]

    def _last_confusion(self, path: Path) -> None:
        """Of the last evaluation alone: those of all would take much memory."""
        counts = None
        with contextlib.suppress(OSError):  # counted where the same file is read by step
            for record in records(path) if path.exists() else ():
                counts = counts if record is None else record.get("confusion", counts)
        self.confusion = counts_matrix(counts)

    def _records(self, path: Path) -> Iterator[dict[str, Any]]:
        try:
            for record in records(path) if path.exists() else ():
                if record is None:
                    self.unreadable += 1  # cut off: a run that is being written, or was killed
                else:
                    yield record
        except OSError:
            self.unreadable += 1  # what had been read of it stays

    def _read_audit(self, path: Path) -> None:
        value = self._json(path, lambda found: found)
        self.regions, self.meanings = audited_regions(value), label_meanings(value)
        whole = isinstance(value, dict) and value.get("regions") == self.regions
        self.unreadable += value is not None and not whole

    def _json(self, path: Path, clean: Callable[[Any], Any]) -> Any:
        """A file's value, cleaned; what ``clean`` refuses or changes counts as unreadable."""
        if not path.exists():
            return None
        try:
            value = parse_json(path.read_bytes())
        except (OSError, ValueError):
            self.unreadable += 1
            return None
        kept = clean(value)
        self.unreadable += kept != value
        return kept

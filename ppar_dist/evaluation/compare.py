"""Runs side by side: their scores by one protocol, the spread over seeds, and what differs in between.

Runs of one configuration but for the seed are one row. Only scores of the same protocol and the same target
are compared; what is left out is told.
"""

from __future__ import annotations

import csv
import io
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ppar_dist.config.identity import config_changes, determining
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.evaluation.protocol import held_out_protocol
from ppar_dist.evaluation.results import columns, read_tables
from ppar_dist.run import paths
from ppar_dist.text import guess

MEAN = "mean"
_SHOWN = 8  # differences of a row that the table lists; of more, their number

Targets = Mapping[str, Mapping[str, Any]]  # by name, as in results.json


@dataclass(frozen=True)
class Spread:
    """Scores of n runs."""

    mean: float
    deviation: float | None  # of the sample; None of a single run
    n: int

    def __str__(self) -> str:
        """In per cent."""
        spread = "" if self.deviation is None else f" ± {100 * self.deviation:.1f}"
        return f"{100 * self.mean:.1f}{spread}"


@dataclass(frozen=True)
class Row:
    """Runs that differ in the seed alone."""

    name: str
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: tuple[int, ...]  # of the checkpoints that were scored
    scores: dict[str, dict[str, Spread]]  # by protocol and target; ``mean`` is over the targets
    changes: tuple[str, ...]  # key: the first row's value -> this one's


@dataclass(frozen=True)
class Comparison:
    """Rows, and what could not be compared."""

    rows: tuple[Row, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        """The figures as ratios from 0 to 1, and all differences."""
        return json.dumps(asdict(self), indent=1)

    def to_csv(self) -> str:
        """A line for each row, protocol and target."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["row", "protocol", "target", "mean_miou", "deviation", "n", "seeds"])
        for row in self.rows:
            seeds = " ".join(map(str, row.seeds))
            for protocol, scores in row.scores.items():
                for target, found in scores.items():
                    writer.writerow([row.name, protocol, target, found.mean, found.deviation, found.n, seeds])
        return text.getvalue()

    def table(self) -> str:
        """mIoU in per cent, mean ± standard deviation over the runs of a row."""
        lines = []
        for protocol, scores in self.rows[0].scores.items():
            head = ["run", "n", "step", *scores]
            cells = [
                [row.name, str(len(row.runs)), _steps(row), *map(str, row.scores[protocol].values())]
                for row in self.rows
            ]
            lines += [f"mIoU; {protocol}", *columns([head, *cells]), ""]
        for row in self.rows[1:]:
            rest = len(row.changes) - _SHOWN
            more = [f"and {rest} more (--json lists all)"] if rest > 0 else []
            lines += [
                f"{self.rows[0].name} -> {row.name}:",
                *(f"  {x}" for x in [*row.changes[:_SHOWN], *more]),
            ]
        return "\n".join([*lines, *self.notes]).rstrip()


@dataclass(frozen=True)
class _Run:
    """A run and the tables of its newest checkpoint, by protocol."""

    path: Path
    config: Config
    step: int
    tables: dict[str, Targets] = field(repr=False)

    @classmethod
    def read(cls, path: Path) -> _Run:
        if not paths.config_file(path).is_file():
            raise UserError(f"{path} is not a run: no config.yaml there; give the run.dir of a training run")
        config, file = load_config(paths.config_file(path)), path / paths.RESULTS
        try:
            tables = read_tables(file, str(held_out_protocol(config)))
        except ValueError:
            raise UserError(f"{file} cannot be read; score the run again with ppar-dist evaluate") from None
        newest = [table for table in tables if table.get("checkpoint") == tables[0].get("checkpoint")]
        found = {str(table["protocol"]): table.get("targets", {}) for table in newest}
        if not any(found.values()):
            raise UserError(f"{path} has no scores; first ppar-dist evaluate {path} --target NAME=FOLDER")
        step = tables[0].get("step")
        return cls(path, config, step if isinstance(step, int) else 0, found)


def compare(runs: Sequence[Path], targets: Sequence[str] = ()) -> Comparison:
    """Set runs side by side.

    Args:
        runs: folders of runs that have been scored.
        targets: names of those to be compared; none: all that every run has.

    Raises:
        UserError: a run has no scores, two runs are of one configuration and seed, or no score of all of them
            is of one target by one protocol.
    """
    found = [_Run.read(path) for path in runs]
    groups = _groups(found)
    scored, notes = _in_common(found, targets)
    names = _names(groups)
    first = groups[0][0].config
    rows = []
    for name, group in zip(names, groups, strict=True):
        scores = {protocol: _scores(group, protocol, common) for protocol, common in scored.items()}
        seeds, steps = tuple(run.config.seed for run in group), tuple(run.step for run in group)
        changes = [line for line in config_changes(first, group[0].config) if not line.startswith("seed: ")]
        folders = tuple(str(run.path) for run in group)
        rows.append(Row(name, folders, seeds, steps, scores, tuple(changes)))
    if len({step for row in rows for step in row.steps}) > 1:
        notes.append("the checkpoints are of different steps")
    return Comparison(tuple(rows), tuple(notes))


def _groups(runs: Sequence[_Run]) -> list[list[_Run]]:
    """Runs that differ in the seed alone, by seed; the groups as they came."""
    groups: dict[str, dict[int, _Run]] = {}
    for run in runs:
        tree = determining(run.config)
        seed = int(tree.pop("seed"))
        group = groups.setdefault(json.dumps(tree, sort_keys=True), {})
        if seed in group:
            raise UserError(
                f"{group[seed].path} and {run.path} are of one configuration and seed {seed}, so they say "
                "nothing of the spread; give one of them"
            )
        group[seed] = run
    return [[group[seed] for seed in sorted(group)] for group in groups.values()]


def _in_common(runs: Sequence[_Run], targets: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Protocols by which all runs were scored, with the targets that are the same for all; and notes."""
    notes = []
    scored: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(protocol for run in runs for protocol in run.tables):
        lacking = [str(run.path) for run in runs if protocol not in run.tables]
        if lacking:
            notes.append(f"left out: scores by [{protocol}], which {', '.join(lacking)} lack")
            continue
        tables = [run.tables[protocol] for run in runs]
        for name in dict.fromkeys(name for table in tables for name in table):
            if targets and name not in targets:
                continue
            problem = _difference(name, tables, runs)
            if problem is None:
                scored.setdefault(protocol, []).append(name)
                if len({str(table[name].get("fingerprint") or "") for table in tables} - {""}) > 1:
                    notes.append(f"target {name} by [{protocol}]: its shards differ from run to run")
            else:
                notes.append(f"left out: target {name} by [{protocol}]: {problem}")
    missing = [name for name in targets if not any(name in names for names in scored.values())]
    if missing or not scored:
        raise UserError(_nothing_in_common(missing, runs, notes))
    return scored, notes


def _nothing_in_common(missing: Sequence[str], runs: Sequence[_Run], notes: Sequence[str]) -> str:
    """Why there is nothing to compare, or not on the targets that were asked for."""
    known = dict.fromkeys(name for run in runs for table in run.tables.values() for name in table)
    unknown = [name for name in missing if name not in known]
    if unknown:
        there = f"there are {', '.join(known)}" + guess(unknown[0], known)
        return f"no run was scored on {', '.join(unknown)}; {there}"
    why = [note for note in notes if not missing or any(f"target {name} " in note for name in missing)]
    what = f"no score on {', '.join(missing)}" if missing else "no score"
    return (
        f"{what} of all these runs is by one protocol; {'; '.join(why or notes)}. Score them with the same "
        "options of ppar-dist evaluate"
    )


def _difference(name: str, tables: Sequence[Targets], runs: Sequence[_Run]) -> str | None:
    """Why a target's scores cannot be compared; None where they can."""
    lacking = [str(run.path) for run, table in zip(runs, tables, strict=True) if name not in table]
    if lacking:
        return f"not scored on {', '.join(lacking)}"
    for key in ("domain", "images", "stored"):
        values = {str(table[name].get(key)) for table in tables}
        if len(values) > 1:
            return f"its {key} differ: {', '.join(sorted(values))}"
    scored = {str(table[name].get("scored") or "all classes") for table in tables}
    if len(scored) > 1:
        return f"its classes differ: {', '.join(sorted(scored))}"
    if any(not isinstance(table[name].get("miou"), (int, float)) for table in tables):
        return "a run has no figure"
    trained = [
        str(run.path) for run, table in zip(runs, tables, strict=True) if table[name].get("trained_on")
    ]
    return f"{', '.join(trained)} trained on it" if trained else None


def _scores(group: Sequence[_Run], protocol: str, targets: Sequence[str]) -> dict[str, Spread]:
    by_run = [[float(run.tables[protocol][name]["miou"]) for name in targets] for run in group]
    scores = {name: _spread(column) for name, column in zip(targets, zip(*by_run, strict=True), strict=True)}
    if len(targets) > 1:
        scores[MEAN] = _spread([statistics.fmean(values) for values in by_run])
    return scores


def _spread(values: Sequence[float]) -> Spread:
    deviation = statistics.stdev(values) if len(values) > 1 else None
    return Spread(statistics.fmean(values), deviation, len(values))


def _names(groups: Sequence[Sequence[_Run]]) -> list[str]:
    """What the folders of a row have in common, where that tells the rows apart; else the first's name."""
    folders = [[run.path.resolve().name for run in group] for group in groups]
    common = [_prefix(names).rstrip("-_. ") if len(names) > 1 else names[0] for names in folders]
    if all(common) and len(set(common)) == len(common):
        return common
    firsts = [names[0] for names in folders]
    return firsts if len(set(firsts)) == len(firsts) else [str(group[0].path) for group in groups]


def _prefix(names: Sequence[str]) -> str:
    same = 0
    for letters in zip(*names, strict=False):
        if len(set(letters)) > 1:
            break
        same += 1
    return names[0][:same]


def _steps(row: Row) -> str:
    low, high = min(row.steps), max(row.steps)
    return str(low) if low == high else f"{low}–{high}"

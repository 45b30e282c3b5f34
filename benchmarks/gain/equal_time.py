"""What a step of a variant costs, from the CPU seconds of training processes, and how many steps are equal.

A process's CPU time holds its start and its last evaluation, which all variants share: the ratio comes out a
little closer to 1 than that of the steps alone.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from pathlib import Path

from benchmarks.runs import Run
from ppar_dist.files.durable import write_atomically

Runs = Mapping[int, Run]  # by seed


def step_ratio(runs: Runs, plain: Runs) -> float | None:
    """Median over seeds of the CPU time per step, divided by that of the plain run with the same seed.

    A run that was interrupted does not count; None if no pair is left.
    """
    ratios = []
    for seed in runs.keys() & plain.keys():
        costs = [_per_step(runs[seed]), _per_step(plain[seed])]
        if costs[0] is not None and costs[1] is not None:
            ratios.append(costs[0] / costs[1])
    return statistics.median(ratios) if ratios else None


def equal_steps(runs: Runs, plain: Runs, out: Path) -> int | None:
    """Steps of a variant that take the CPU time of plain's steps; None where no ratio was measured.

    The ratio is measured once and kept in ``OUT/step_ratio.json``, so that more seeds do not change the
    number of steps under runs that are finished.
    """
    file, first = out / "step_ratio.json", min(runs)
    known: dict[str, float] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    pair = f"{runs[first].key} / {plain[first].key}"
    if pair not in known:
        ratio = step_ratio(runs, plain)
        if ratio is None:
            return None
        known[pair] = ratio
        write_atomically(file, json.dumps(known, indent=1) + "\n")
    return max(1, round(plain[first].config.train.steps / known[pair]))


def _per_step(run: Run) -> float | None:
    seconds = run.cpu_seconds()
    return None if seconds is None else seconds / run.config.train.steps

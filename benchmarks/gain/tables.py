"""The tables of ``python -m benchmarks.gain``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.bootstrap import DRAWS, MEAN, differences, per_seed
from benchmarks.gain.equal_time import Runs, step_ratio
from benchmarks.judge import HELD_OUT, stack
from benchmarks.pages import markdown
from ppar_dist.sweep.statistics import spread


def scores_table(found: Mapping[str, Runs], targets: Sequence[str], plain: str) -> str:
    """Mean mIoU ± standard deviation over seeds, per cent; HELD_OUT is not part of the mean."""
    rows = [["run", "seeds", "steps", "CPU per step", *targets, "mean", "held-out sources"]]
    for name, runs in found.items():
        folders = [run.folder for run in runs.values()]
        values = per_seed(stack(folders, targets))
        held_out = per_seed(stack(folders, [HELD_OUT]))[HELD_OUT]
        ratio, steps = step_ratio(runs, found[plain]), next(iter(runs.values())).config.train.steps
        cost = "" if ratio is None else f"× {ratio:.2f}"
        cells = [spread(values[column].tolist()) for column in (*targets, MEAN)]
        rows.append([name, str(len(runs)), str(steps), cost, *cells, spread(held_out.tolist())])
    return markdown(rows)


def differences_table(found: Mapping[str, Runs], targets: Sequence[str], against: str) -> str:
    """Differences to ``against`` with their intervals, over the seeds that both have."""
    rows = [[f"difference to {against}", *targets, "mean"]]
    for name, runs in found.items():
        seeds = sorted(runs.keys() & found[against].keys())
        if name == against or not seeds:
            continue
        one, other = (
            stack([each[seed].folder for seed in seeds], targets) for each in (runs, found[against])
        )
        difference = differences(one, other)
        rows.append([name, *(str(difference[column]) for column in (*targets, MEAN))])
    return markdown(rows)


NOTE = (
    "mIoU in per cent, mean ± standard deviation over seeds; CPU per step: CPU time of the training process "
    "per step, divided by plain's (median over seeds). Differences in points with their 95 % interval: "
    f"{DRAWS} draws of seeds (paired) and, per target, of images."
)

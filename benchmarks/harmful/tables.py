"""The tables of ``python -m benchmarks.harmful``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.bootstrap import DRAWS, MEAN, differences, per_seed
from benchmarks.gain.equal_time import Runs
from benchmarks.harmful.separation import course, mean_known, read_draws, weight_ratio
from benchmarks.harmful.spoil import spoiled_keys
from benchmarks.harmful.variants import PLAIN
from benchmarks.judge import stack
from benchmarks.pages import markdown
from ppar_dist.sweep.statistics import Difference, spread

RATIO = "mean weight, spoiled / clean"
Courses = dict[str, list[list[float]]]  # score → per seed, a figure per window of the run


def harm_taken_away(gain: float, harm: float) -> float:
    """The share gain / harm; nan where there is no harm."""
    return gain / harm if harm > 0 else math.nan


def harm_rows(
    found: Mapping[str, Runs], clean: Runs, targets: Sequence[str], related: Sequence[str], against: str
) -> list[list[str]]:
    """A row per variant on one spoiled source at one share.

    Args:
        found: variant → runs by seed, all on the spoiled source.
        clean: PLAIN without the spoiled source.
        targets: columns.
        related: targets that are no part of the mean, in brackets.
        against: the variant that the others are compared with.

    Returns:
        Name, mIoU per target and their mean, difference to plain on the spoiled sources (of PLAIN: to the
        clean ones, which is the harm), share of the harm taken away, and, unless ``against`` is PLAIN, the
        difference to that variant.
    """
    unseen = [name for name in targets if name not in related]
    harm = _paired(clean, found[PLAIN], unseen)
    rows = []
    for name, runs in found.items():
        folders = [run.folder for run in runs.values()]
        scores = per_seed(stack(folders, targets)) | {MEAN: per_seed(stack(folders, unseen))[MEAN]}
        cells = {column: spread(values.tolist()) for column, values in scores.items()}
        cells |= {column: f"({cells[column]})" for column in related}
        if name == PLAIN:
            last = [f"{_negative(harm)} to clean sources", ""]
        else:
            gain = _paired(runs, found[PLAIN], unseen)
            last = [str(gain), _share(gain, harm)]
        if against != PLAIN:
            last.append("" if name == against else str(_paired(runs, found[against], unseen)))
        rows.append([name, *cells.values(), *last])
    return rows


def harm_table(rows: Sequence[Sequence[str]], targets: Sequence[str], against: str) -> str:
    """The rows under their heads."""
    heads = ["spoiled source", "positions", "run", *targets, "mean", "difference to plain", "harm taken away"]
    return markdown([heads + ([f"difference to {against}"] if against != PLAIN else []), *rows])


NOTE = (
    "mIoU in per cent, mean ± standard deviation over seeds; in brackets: targets from the spoiled source's "
    "data set, which are no part of the mean. Differences of means in points with their 95 % interval: "
    f"{DRAWS} draws of seeds (paired) and, per target, of images. Harm taken away: (variant - plain) / "
    "(plain on clean sources - plain)."
)


def separation(runs: Runs, domain: Path, windows: int) -> Courses:
    """AUROC of clean over spoiled draws by reliability and weight, and the weights' ratio, per window."""
    keys, found = {domain.name: spoiled_keys(domain)}, Courses()
    for run in runs.values():
        draws = read_draws(run.folder, keys)
        rows = {
            "reliability": course(draws, draws.reliability, windows),
            "weight": course(draws, draws.weight, windows),
            "weight, within the spoiled domain": course(draws, draws.weight, windows, domain.name),
            RATIO: weight_ratio(draws, windows),
        }
        for score, row in rows.items():
            if not all(math.isnan(value) for value in row):
                found.setdefault(score, []).append(row)
    return found


def separation_table(found: Mapping[tuple[str, str], Courses], windows: int) -> str:
    """Markdown: means over seeds per window, of each (spoiled source, share)."""
    heads = [f"{100 * w // windows}-{100 * (w + 1) // windows} %" for w in range(windows)]
    rows = [["spoiled source", "positions", "AUROC of clean over spoiled by", *heads]]
    for (spoiler, share), courses in found.items():
        for score, seeds in courses.items():
            means = [f"{mean_known(window):.2f}" for window in zip(*seeds, strict=True)]
            rows.append([spoiler, share, score, *means])
    return markdown(rows)


def _paired(one: Runs, other: Runs, targets: Sequence[str]) -> Difference:
    """The difference of the means over the targets, over the seeds that both have."""
    seeds = sorted(one.keys() & other.keys())
    ours, theirs = (stack([runs[seed].folder for seed in seeds], targets) for runs in (one, other))
    return differences(ours, theirs)[MEAN]


def _negative(harm: Difference) -> Difference:
    return Difference(-harm.value, -harm.high, -harm.low)


def _share(gain: Difference, harm: Difference) -> str:
    share = harm_taken_away(gain.value, harm.value)
    return "no harm" if math.isnan(share) else f"{100 * share:.0f} %"

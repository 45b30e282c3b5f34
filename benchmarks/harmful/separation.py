"""How well logged weights and reliabilities of samples separate spoiled from clean samples, over training."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative, ties counting half; nan if either is missing.

    From ranks: (Σ ranks of positives - n₊(n₊+1)/2) / (n₊ n₋), equal scores sharing their mean rank.
    """
    p, n = len(positive), len(negative)
    if not p or not n:
        return float("nan")
    _, place, counts = np.unique([*positive, *negative], return_inverse=True, return_counts=True)
    ranks = counts.cumsum() - (counts - 1) / 2  # of each distinct score, from 1
    return float((ranks[place[:p]].sum() - p * (p + 1) / 2) / (p * n))


@dataclass(frozen=True)
class Draws:
    """Every logged draw of a sample in a run, in order; arrays of one length."""

    progress: npt.NDArray[np.float64]  # step / total steps, in (0, 1]
    spoiled: npt.NDArray[np.bool_]
    domain: npt.NDArray[np.str_]
    weight: npt.NDArray[np.float64]
    reliability: npt.NDArray[np.float64]  # nats; nan where an image shows no class


def read_draws(run: Path, spoiled: Mapping[str, Collection[str]]) -> Draws:
    """Read ``metrics/samples.jsonl`` of a run; ``spoiled`` names the spoiled keys of each domain."""
    lines = (run / "metrics" / "samples.jsonl").read_text().splitlines()
    rows: list[tuple[int, dict[str, Any]]] = []
    for line in lines:
        record = json.loads(line)
        rows += [(record["step"], sample) for sample in record["samples"]]
    samples = [sample for _, sample in rows]
    steps = np.array([step for step, _ in rows], dtype=float)
    return Draws(
        progress=steps / steps.max(),
        spoiled=np.array([s["key"] in spoiled.get(s["domain"], ()) for s in samples]),
        domain=np.array([s["domain"] for s in samples]),
        weight=np.array([s["weight"] for s in samples], dtype=float),
        reliability=np.array([s["reliability"] for s in samples], dtype=float),  # None becomes nan
    )


def course(
    draws: Draws, score: npt.NDArray[np.float64], windows: int, within: str | None = None
) -> list[float]:
    """AUROC of clean over spoiled draws by ``score`` in each of equal windows of the run.

    Args:
        draws: of a run.
        score: one per draw, ``draws.weight`` say; draws where it is nan are left out.
        windows: how many.
        within: compare inside this domain only.
    """
    use = np.isfinite(score) & ((draws.domain == within) if within else True)
    window = np.ceil(draws.progress * windows - 1e-9).astype(int) - 1
    return [
        auroc(score[use & ~draws.spoiled & (window == w)], score[use & draws.spoiled & (window == w)])
        for w in range(windows)
    ]


def weight_ratio(draws: Draws, windows: int) -> list[float]:
    """Mean weight of spoiled draws over that of clean ones, in each window; nan if either is missing."""
    window = np.ceil(draws.progress * windows - 1e-9).astype(int) - 1
    ratios = []
    for w in range(windows):
        bad, good = draws.weight[draws.spoiled & (window == w)], draws.weight[~draws.spoiled & (window == w)]
        ratios.append(float(bad.mean() / good.mean()) if len(bad) and len(good) else float("nan"))
    return ratios


def mean_known(values: Sequence[float]) -> float:
    """Mean of the values that are not nan; nan if all are."""
    known = [value for value in values if value == value]
    return sum(known) / len(known) if known else float("nan")


def chart(courses: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: Path) -> bool:
    """Draw the courses as a PNG, one panel per scenario.

    Args:
        courses: scenario → score → a list per seed of AUROC per window.
        path: of the PNG.

    Returns:
        False when matplotlib, which the package does not need, is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(courses), figsize=(3.6 * len(courses), 2.6), sharey=True, squeeze=False, layout="constrained"
    )
    for panel, (scenario, scores) in zip(panels[0], courses.items(), strict=True):
        for name, seeds in scores.items():
            table = np.array(seeds, dtype=float)  # (seeds, windows)
            places = (np.arange(table.shape[1]) + 0.5) / table.shape[1]
            means = [mean_known(window) for window in table.T.tolist()]
            (line,) = panel.plot(places, means, marker="o", markersize=3, label=name)
            panel.fill_between(places, table.min(0), table.max(0), alpha=0.2, color=line.get_color(), lw=0)
        panel.axhline(0.5, color="grey", lw=0.8, ls=":")
        panel.set(title=scenario, xlabel="share of training done", xlim=(0, 1), ylim=(0, 1.03))
    panels[0][0].set_ylabel("AUROC, clean over spoiled")
    for panel in panels[0]:
        panel.legend(loc="lower right", fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True

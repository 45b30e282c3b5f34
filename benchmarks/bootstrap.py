"""Mean mIoU over seeds, and what a difference of two variants is worth: a hierarchical bootstrap.

A draw takes as many seeds as there are, with replacement, and as many images of each target; both variants
get the same seeds and the same images. Its figure is the mean over the drawn seeds of the mIoU of the summed
confusion matrices of the drawn images. Percentiles of the draws' differences bound the interval.

Letters: S seeds, N images of a target, K classes, B draws. The rows of a confusion matrix are labels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ppar_dist.sweep.statistics import LEVEL, Difference

DRAWS, MEAN = 2000, "mean"
Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Resamples:
    """How often each seed and each image is drawn."""

    seeds: Array  # (B, S); each row sums to S
    images: Mapping[str, Array]  # target → (B, N); each row sums to N


def resamples(seeds: int, images: Mapping[str, int], draws: int = DRAWS, seed: int = 0) -> Resamples:
    """Draws of so many seeds and so many images of each target; a target's do not depend on the others."""

    def drawn(size: int, what: str) -> Array:
        rng = np.random.default_rng([seed, zlib.crc32(what.encode())])
        return rng.multinomial(size, np.full(size, 1 / size), size=draws)

    return Resamples(drawn(seeds, "seeds"), {name: drawn(size, name) for name, size in images.items()})


def mean_iou(counts: Array) -> Floats:
    """mIoU (...) of summed confusion matrices (..., K, K), over the classes of the labels; nan without any.

    ``ppar-dist evaluate`` counts a class that is predicted and never labelled too, with an IoU of 0. A target
    that is labelled with some of the classes only would then be judged by how many it lacks.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1).astype(float)
    union = counts.sum(-1) + counts.sum(-2) - hits
    occurs = counts.sum(-1) > 0
    iou = np.divide(hits, union, out=np.zeros_like(hits), where=occurs)
    number = occurs.sum(-1)
    found: Floats = np.divide(iou.sum(-1), number, out=np.full(number.shape, np.nan), where=number > 0)
    return found


def per_seed(confusions: Mapping[str, Array]) -> dict[str, Floats]:
    """mIoU (S,) of each target on all its images, and their mean under ``MEAN``."""
    found = {name: mean_iou(counts.sum(1)) for name, counts in confusions.items()}
    return found | {MEAN: _mean(found)}


def drawn(confusions: Mapping[str, Array], resamples: Resamples) -> dict[str, Floats]:
    """Mean mIoU (B,) of each draw per target, and the mean of the targets under ``MEAN``."""
    found = {}
    for name, counts in confusions.items():
        s, n, k, _ = counts.shape
        rows = counts.transpose(1, 0, 2, 3).reshape(n, -1).astype(float)  # (N, S·K·K)
        summed = (resamples.images[name].astype(float) @ rows).reshape(-1, s, k, k)  # exact: below 2^53
        found[name] = (resamples.seeds * mean_iou(summed)).sum(1) / s
    return found | {MEAN: _mean(found)}


def interval(values: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Lower and upper bound that hold ``level`` of the draws between them."""
    low, high = np.percentile(values, [50 * (1 - level), 50 * (1 + level)])
    return float(low), float(high)


def differences(
    one: Mapping[str, Array], other: Mapping[str, Array], draws: int = DRAWS, seed: int = 0
) -> dict[str, Difference]:
    """``one`` - ``other`` per target and under ``MEAN``, paired by seed and by image.

    Args:
        one: target → confusion matrices (S, N, K, K).
        other: the same seeds, targets and images of another variant.
        draws: number B of the bootstrap.
        seed: of its random numbers.
    """
    if {name: counts.shape for name, counts in one.items()} != {n: c.shape for n, c in other.items()}:
        raise ValueError("both variants have the same targets, seeds and images; judge both on the same data")
    seeds = next(iter(one.values())).shape[0]
    chosen = resamples(seeds, {name: counts.shape[1] for name, counts in one.items()}, draws, seed)
    values = per_seed(one), per_seed(other)
    spread = drawn(one, chosen), drawn(other, chosen)
    return {
        name: Difference(
            float((values[0][name] - values[1][name]).mean()), *interval(spread[0][name] - spread[1][name])
        )
        for name in values[0]
    }


def _mean(found: Mapping[str, Floats]) -> Floats:
    mean: Floats = np.mean(list(found.values()), axis=0)
    return mean

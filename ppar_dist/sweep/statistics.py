"""What a difference of two variants is worth: paired by seed, with Student's interval.

With few seeds a bootstrap over seeds is too narrow: of 3 there are 10 different draws. Student's interval
takes the differences for normal and is then right for any number from 2 on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.95


@dataclass(frozen=True)
class Difference:
    """A mean difference and its interval; nan where one pair gives none."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        points = (f"{100 * value:+.1f}".replace("-", "−") for value in (self.value, self.low, self.high))
        value, low, high = points
        return value if math.isnan(self.low) else f"{value} [{low}, {high}]"


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation of ratios, in per cent."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{100 * statistics.mean(values):.1f} ± {100 * deviation:.1f}"


def paired_difference(one: Mapping[int, float], other: Mapping[int, float]) -> Difference | None:
    """``one`` - ``other`` over the seeds that both have; None where there are none."""
    found = [one[seed] - other[seed] for seed in sorted(one.keys() & other.keys())]
    if not found:
        return None
    mean, count = statistics.mean(found), len(found)
    if count == 1:
        return Difference(mean, math.nan, math.nan)
    half = student_quantile(0.5 + LEVEL / 2, count - 1) * statistics.stdev(found) / math.sqrt(count)
    return Difference(mean, mean - half, mean + half)


def student_quantile(probability: float, degrees: int) -> float:
    """The quantile of Student's t for a probability above one half, by bisection of its distribution."""
    low, high = 0.0, 1.0
    while student_distribution(high, degrees) < probability:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if student_distribution(middle, degrees) < probability else (low, middle)
    return high


def student_distribution(t: float, degrees: int) -> float:
    """P(T ≤ t) for t ≥ 0 and whole degrees of freedom ν, by its finite series in θ = atan(t / √ν).

    Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    theta = math.atan(t / math.sqrt(degrees))
    cosine, is_odd = math.cos(theta), degrees % 2 == 1
    term, total = (cosine, 0.0) if is_odd else (1.0, 0.0)
    for k in range(2 if is_odd else 1, degrees, 2):  # ν - 1 over 2 terms, or ν over 2
        total += term
        term *= cosine**2 * k / (k + 1)
    inside = 2 / math.pi * (theta + math.sin(theta) * total) if is_odd else math.sin(theta) * total
    return 0.5 + inside / 2

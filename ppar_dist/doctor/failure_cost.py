"""What failures cost a long run: goodput, the best interval between checkpoints, and seconds lost by part.

Pure functions of figures, in seconds. Failures are independent and come at a constant rate (exponential times
between them). A run trains for an interval, is blocked while a copy is made, and trains on while the copy is
written; a failure sends it back to the newest checkpoint that was whole by then.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_DAY = 86400.0


@dataclass(frozen=True)
class Save:
    """What a checkpoint costs: ``blocked_s`` of training, and ``write_s`` until it is whole, behind it."""

    blocked_s: float
    write_s: float = 0.0


@dataclass(frozen=True)
class Restart:
    """Seconds from a failure to the first step after it.

    Attributes:
        noticed: until the job has ended.
        queued: until the scheduler starts it again.
        imports: the ranks' libraries.
        build: the model, its text embeddings, and the ranks' meeting.
        resume: a checkpoint is verified, read and loaded.
        first_batch: the loader's first images.
        compile: torch.compile, where the configuration asks for it.
    """

    noticed: float = 0.0
    queued: float = 0.0
    imports: float = 0.0
    build: float = 0.0
    resume: float = 0.0
    first_batch: float = 0.0
    compile: float = 0.0

    @property
    def seconds(self) -> float:
        """All of it."""
        return float(sum(vars(self).values()))


def job_mtbf_s(node_mtbf_s: float, nodes: int) -> float:
    """Mean seconds between failures of a job that each of its machines can end: rates add up."""
    return node_mtbf_s / nodes


def failures_per_1000_node_days(mtbf_s: float, nodes: int) -> float:
    """The rate of one machine that a job's mean time between failures implies."""
    return 1000 * _DAY / (mtbf_s * nodes)


def young_s(save: Save, mtbf_s: float) -> float:
    """Interval √(2 C M), C the blocked seconds: first order (Young, Communications of the ACM 17, 1974)."""
    return math.sqrt(2 * save.blocked_s * mtbf_s)


def daly_s(save: Save, mtbf_s: float) -> float:
    """Interval to higher order (Daly, Future Generation Computer Systems 22, 2006)."""
    if math.isinf(mtbf_s):
        return math.inf
    if save.blocked_s >= 2 * mtbf_s:
        return mtbf_s
    ratio = save.blocked_s / (2 * mtbf_s)
    return young_s(save, mtbf_s) * (1 + math.sqrt(ratio) / 3 + ratio / 9) - save.blocked_s


def best_interval_s(save: Save, mtbf_s: float) -> float:
    """The interval of most goodput, solved numerically; at least the seconds of a write.

    The maximum of `goodput` is where (1 - τ/M) e^(τ/M) = e^(-C/M), whatever writing and restarts take.
    """
    if math.isinf(mtbf_s):
        return math.inf
    low, high = 0.0, 1.0  # in units of M; the left side falls from 1 to 0
    for _ in range(200):
        middle = (low + high) / 2
        falls_short = math.log1p(-middle) + middle < -save.blocked_s / mtbf_s
        low, high = (low, middle) if falls_short else (middle, high)
    return max(high * mtbf_s, save.write_s)


def goodput(interval_s: float, save: Save, restart_s: float, mtbf_s: float) -> float:
    """Share of a long run's time in steps that count, from 0 to 1.

    Between two failures a run restarts, then completes its k-th interval's checkpoint R + k (τ + C) + L
    seconds after the failure, if it lives so long: τ Σₖ e^(-(R + k (τ + C) + L) / M) seconds count of M. With
    L = 0 this is the run time of Daly (2006). A write is taken to end before the next begins.

    Args:
        interval_s: τ, seconds of training between two checkpoints.
        save: C and L.
        restart_s: R; failures may come in it too.
        mtbf_s: M, of the job.
    """
    period = interval_s + save.blocked_s
    if math.isinf(mtbf_s):
        return 1.0 if math.isinf(interval_s) else interval_s / period
    if period / mtbf_s > 700:  # e^700: no interval is ever completed
        return 0.0
    survives = math.exp(-(restart_s + save.write_s) / mtbf_s)
    return interval_s * survives / (mtbf_s * math.expm1(period / mtbf_s))


def lost_by_part(interval_s: float, save: Save, restart: Restart) -> dict[str, float]:
    """Mean seconds that a failure costs, by part: steps done again, then what a restart takes.

    Half an interval, and the steps that were done while the newest checkpoint was not whole yet.
    """
    again = {"steps done again": interval_s / 2 + save.write_s}
    return again | {name.replace("_", " "): value for name, value in vars(restart).items()}

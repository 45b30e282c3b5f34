"""Goodput: the share of a run's time that went into steps which still count.

The training seconds of a step last from its forward pass to its update: neither the wait for its data nor
evaluations, saves and starts are in them. A step counts once: where a crash or a rollback made the run go
back, the seconds of the steps behind that point are lost, and those of their repetition count. Goodput is the
training seconds of the steps that count, divided by the wall time from the start of the run's first process
to now, or to the last record of a run that is read afterwards. Pauses between attempts, starts, saves and
waiting are in that time. Steps behind the newest checkpoint count until a crash has lost them; what a killed
process did after its last record is known to nobody, and does not count.

A record of ``metrics/time.jsonl`` says: at ``time`` the run stood at ``step``, and the steps since the record
before took ``seconds``. One at an earlier step than the record before says that the run went back. There is
one at each start, logged step, checkpoint, rollback and end; none is ever dropped.
"""

from __future__ import annotations

import os
import time
from array import array
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from ppar_dist.files.jsonl import JsonLines, is_step, records
from ppar_dist.text import clock

_LATEST = 1e11  # seconds since 1970; far beyond any run


class Tally:
    """The seconds of a run, added up record by record.

    Attributes:
        began: when the run's first process started, in seconds since 1970; None before the first record.
        ended: of the newest record.
        trained_s: seconds of the steps that still count.
        lost_s: seconds of those that were done for nothing.
    """

    def __init__(self) -> None:
        """No record yet."""
        self.began: float | None = None
        self.ended = 0.0
        self.trained_s = self.lost_s = 0.0
        self._steps, self._seconds = array("q"), array("d")  # of the records that count, by rising step

    def take(self, now: float, step: int, seconds: float) -> None:
        """The run stands at ``step`` ``now``; the steps since the record before took ``seconds``."""
        while self._steps and self._steps[-1] > step:
            self._steps.pop()
            lost = self._seconds.pop()
            self.trained_s, self.lost_s = self.trained_s - lost, self.lost_s + lost
        self._steps.append(step)
        self._seconds.append(seconds)
        self.trained_s += seconds
        self.began, self.ended = now if self.began is None else self.began, now

    def wall_s(self, now: float | None = None) -> float:
        """Seconds from the first start to ``now`` (None: to the newest record)."""
        return 0.0 if self.began is None else max(0.0, (self.ended if now is None else now) - self.began)

    def ratio(self, now: float | None = None) -> float | None:
        """Goodput, from 0 to 1; None where no time has passed, as after a clock that was set back."""
        wall = self.wall_s(now)
        return min(1.0, max(0.0, self.trained_s) / wall) if wall > 0 else None

    def facts(self) -> dict[str, float | None]:
        """Plain values, to the millisecond."""
        ratio = self.ratio()
        return {
            "ratio": None if ratio is None else round(ratio, 4),
            "training_s": round(max(0.0, self.trained_s), 3),
            "lost_s": round(self.lost_s, 3),
            "wall_s": round(self.wall_s(), 3),
        }

    def sentence(self) -> str:
        """Goodput and what it is made of, for a terminal; "" where there is none."""
        ratio = self.ratio()
        if ratio is None:
            return ""
        lost = f", and {clock(self.lost_s)} of steps that were lost" if self.lost_s else ""
        spent = f"{clock(max(0.0, self.trained_s))} of training in {clock(self.wall_s())}"
        return f"goodput {100 * ratio:.1f} %: {spent} since the first start{lost}"


def tally(found: Iterable[Mapping[str, Any] | None]) -> Tally | None:
    """What the records of ``time.jsonl`` add up to; those that cannot be such are passed over.

    None where none is left, as in a run of an earlier version.
    """
    total = Tally()
    for record in found:
        if record is not None and _is_whole(record):
            total.take(float(record["time"]), record["step"], float(record["seconds"]))
    return None if total.began is None else total


def read_goodput(path: Path) -> Tally | None:
    """As ``tally``, of a file; None too where it is not there or storage fails."""
    try:
        return tally(records(path))
    except OSError:
        return None


class TimeLog:
    """Writes the records of a run, and adds them up; on rank 0."""

    def __init__(self, path: Path, began: float, step: int, now: Callable[[], float] = time.time) -> None:
        """This process started at ``began`` and resumes the run at ``step``.

        Raises:
            OSError: the file cannot be read or written.
        """
        self._now, self._step = now, step
        self._pending = 0.0  # seconds of steps since the last record
        known = tally(records(path)) if path.exists() else None
        self.total = Tally() if known is None else known
        start = {"time": began, "step": step, "seconds": 0.0}
        self._file = JsonLines(path, first=start, waits=True)  # of a file that somebody deletes, too
        is_new = not path.exists() or not os.path.getsize(path)
        self._file.open()
        if is_new:
            self._file.flush()
        else:
            self._file.write(start)
        self.total.take(began, step, 0.0)

    def add(self, step: int, seconds: float) -> None:
        """The step that led to ``step`` took ``seconds``."""
        self._step, self._pending = step, self._pending + seconds

    def mark(self) -> None:
        """Record the steps up to now: to here the run can come back without a loss."""
        now, seconds, self._pending = self._now(), round(self._pending, 6), 0.0
        self._file.write({"time": now, "step": self._step, "seconds": seconds})
        self.total.take(now, self._step, seconds)

    def go_back(self, step: int) -> None:
        """The run has returned to ``step``."""
        self.mark()
        self._step = step
        self.mark()

    def ratio(self) -> float:
        """Goodput up to now, 0 before the first step; steps since the last record count. From any thread."""
        wall = self.total.wall_s(self._now())
        return min(1.0, (self.total.trained_s + self._pending) / wall) if wall > 0 else 0.0

    def close(self) -> None:
        """Record the end, and close the file."""
        self.mark()
        self._file.close()


def _is_whole(record: Mapping[str, Any]) -> bool:
    return is_step(record.get("step")) and all(_is_time(record.get(name)) for name in ("time", "seconds"))


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _LATEST

"""How far a run is: a live view on a terminal, plain lines elsewhere."""

from __future__ import annotations

import errno
import math
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ppar_dist.text import clock, visible
from ppar_dist.view import terminal

_REFRESH_S = 0.25
_WINDOW, _WINDOW_S = 200, 60.0  # steps and seconds that the rate is of
_LATE_S = 10.0  # a step that takes longer, and five times what it should, is shown as late
_DOMAINS = 6  # weights shown
_GAP = " · "  # between figures
_ACCENT, _BOLD, _DIM, _NORMAL = "\x1b[36m", "\x1b[1m", "\x1b[2m", "\x1b[0m"


@dataclass(frozen=True)
class StepSummary:
    """What the view shows of a step; parts without a value are left out.

    Attributes:
        loss: by term; ``total`` is their weighted sum.
        stage: of alignment; "" without alignment.
        next_stage: name and first step of the one that comes next.
        ess_ratio: effective over actual number of samples.
        weights: mean weight by domain.
    """

    loss: Mapping[str, float]
    stage: str = ""
    next_stage: tuple[str, int] | None = None
    ess_ratio: float = math.nan
    weights: Mapping[str, float] = field(default_factory=dict)


class Pace:
    """The rate of the last steps: the first, slow ones and an evaluation are soon forgotten."""

    def __init__(self, now: float) -> None:
        """The first step begins ``now``, in seconds of a monotonic clock."""
        self._marks = deque([(now, 0.0)], maxlen=_WINDOW)  # end of a step; seconds waited for data so far
        self._lock = threading.Lock()

    def step(self, now: float, waited: float) -> None:
        """A step ends ``now`` that waited so many seconds for its data."""
        with self._lock:
            marks = self._marks
            marks.append((now, marks[-1][1] + waited))
            while len(marks) > 6 and now - marks[0][0] > _WINDOW_S:
                marks.popleft()

    def figures(self) -> tuple[float, float]:
        """Steps per second (0 before the end of the first), and the share of time spent waiting for data."""
        with self._lock:
            (began, waited_before), (ended, waited) = self._marks[0], self._marks[-1]
            steps = len(self._marks) - 1
        seconds = max(ended - began, 1e-9)
        return steps / seconds, min(1.0, (waited - waited_before) / seconds)

    def since_step(self, now: float) -> float:
        """Seconds since the last step ended."""
        return now - self._marks[-1][0]


class Progress:
    """Rank 0's view of the progress: rows at the bottom of a terminal, and lines."""

    def __init__(
        self,
        total: int,
        start: int,
        log_every: int,
        speed: Callable[[float], Sequence[str]] = lambda rate: (),
    ) -> None:
        """Show steps ``start`` to ``total``; off a terminal, as a line every ``log_every`` steps.

        ``speed`` says what a rate in steps per second amounts to.
        """
        self._total, self._log_every, self._speed = total, log_every, speed
        on_terminal = terminal.can_draw(sys.stderr)
        self._has_lines = not (on_terminal and terminal.can_draw(sys.stdout))
        self._notes: dict[str, tuple[str, float]] = {}
        self.rewind(start)
        self._closed = threading.Event()
        self._drawer: threading.Thread | None = None
        if on_terminal:
            footer = terminal.Footer(sys.stderr)
            self._drawer = threading.Thread(target=self._draw, args=(footer,), name="progress", daemon=True)
            self._drawer.start()

    def rewind(self, step: int) -> None:
        """Go on from ``step``; the rate counts from here."""
        self._pace = Pace(time.monotonic())
        self._now: tuple[int, StepSummary | None] = (step, None)

    def step(self, step: int, summary: StepSummary, waited: float = 0.0) -> None:
        """Report that ``step`` steps are done, the last after ``waited`` seconds for its data."""
        self._pace.step(time.monotonic(), waited)
        self._now = (step, summary)
        if self._has_lines and (step % self._log_every == 0 or step == self._total):
            self.say(self._line())

    def note(self, name: str, text: str) -> None:
        """Keep in view what happened last of its kind, with its age."""
        self._notes = {**self._notes, name: (text, time.monotonic())}

    def say(self, text: str) -> None:
        """A line of its own."""
        try:
            print(f"{visible(text)}\n", end="", flush=True)  # one write, also where nothing is buffered
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return  # a line is lost; there may be room for the next
            # The reader has ended (`train … | head`, a closed window); the run continues unwatched.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    def close(self) -> None:
        """End the view; its last state stays as a line."""
        if self._closed.is_set():
            return
        self._closed.set()
        if self._drawer is not None:
            self._drawer.join(timeout=2.0)
            if not self._has_lines and self._now[1] is not None:
                self.say(self._line())

    def _line(self) -> str:
        step, summary = self._now
        assert summary is not None, "a line is of a step"
        rate, waiting = self._pace.figures()
        facts = {"loss": _figure(summary.loss.get("total", math.nan))}
        facts |= {name: _figure(value) for name, value in _parts(summary.loss)}
        if summary.stage:
            facts["stage"] = summary.stage
        if not math.isnan(summary.ess_ratio):
            facts["ess"] = f"{summary.ess_ratio:.2f}"
        facts["wait"] = f"{100 * waiting:.0f}%"
        text = " ".join(f"{name}={value}" for name, value in facts.items())
        pace = " ".join([f"{rate:.2f} step/s", *self._speed(rate)])
        return f"step {step}/{self._total} {text} {pace} eta {self._eta(step, rate)}"

    def _eta(self, step: int, rate: float) -> str:
        return clock((self._total - step) / rate) if rate > 0 else "?"

    def _draw(self, footer: terminal.Footer) -> None:
        try:
            while not self._closed.wait(_REFRESH_S):
                footer.draw(self._rows(footer.size()[1]))
        except OSError:
            return  # the terminal was closed
        footer.close()

    def _rows(self, width: int) -> list[str]:
        step, summary = self._now
        now = time.monotonic()
        rate, waiting = self._pace.figures()
        late = self._pace.since_step(now)
        is_late = rate > 0 and late > max(_LATE_S, 5 / rate)
        pace = f"no step for {clock(late)}" if is_late else f"{rate:.2f} step/s"
        rows = bar(step, self._total, [pace, f"eta {self._eta(step, rate)}"], width)
        groups = [] if summary is None else _groups(summary, step)
        notes = [f"{name} {text}, {clock(now - at)} ago" for name, (text, at) in self._notes.items()]
        groups.append([f"data wait {100 * waiting:.0f} %", *self._speed(rate), *notes])
        return [*rows, *(line for group in groups for line in flow(map(visible, group), width))]


def bar(step: int, total: int, pace: Sequence[str], width: int) -> list[str]:
    """The steps, the share done, the pace; with a bar, where one row has room for it."""
    share = step / total if total else 1.0
    head, percent = f"step {step}/{total} ", f"{100 * share:.0f} %"
    tail = "  ".join(["", percent, *pace])[1:]
    room = min(60, width - len(head) - len(tail))
    if room < 5:
        return flow([head.strip(), percent, *pace], width)
    done = round(room * share)
    if terminal.has_colour():
        drawn = f"{_ACCENT}{'━' * done}{_NORMAL}{_DIM}{'─' * (room - done)}{_NORMAL}"
        return [f"{_BOLD}{head}{_NORMAL}{drawn}{tail}"]
    return [f"{head}{'━' * done}{'─' * (room - done)}{tail}"]


def flow(cells: Iterable[str], width: int) -> list[str]:
    """Cells in as few rows of ``width`` characters as their order allows."""
    rows: list[str] = []
    for cell in cells:
        if rows and len(rows[-1]) + len(_GAP) + len(cell) <= width:
            rows[-1] += _GAP + cell
        else:
            rows.append(cell)
    return rows


def _groups(summary: StepSummary, step: int) -> list[list[str]]:
    """What is shown together, the most important first."""
    groups = []
    if summary.stage:
        stage = [f"stage {summary.stage}"]
        if summary.next_stage is not None:
            name, first = summary.next_stage
            stage.append(f"{name} in {first - step} steps" if first > step else f"{name} next")
        groups.append(stage)
    parts = [f"{name} {_figure(value)}" for name, value in _parts(summary.loss)]
    groups.append([f"loss {_figure(summary.loss.get('total', math.nan))}", *parts])
    weights = [(name, value) for name, value in summary.weights.items() if not math.isnan(value)]
    if weights or not math.isnan(summary.ess_ratio):
        groups.append([f"ess {summary.ess_ratio:.2f}", *_weights(weights)])
    return groups


def _weights(weights: Sequence[tuple[str, float]]) -> list[str]:
    cells = [f"{name} {value:.2f}" for name, value in weights[:_DOMAINS]]
    if cells:
        cells[0] = f"weights {cells[0]}"
    left = len(weights) - _DOMAINS
    return [*cells, f"{left} more"] if left > 0 else cells


def _parts(loss: Mapping[str, float]) -> list[tuple[str, float]]:
    """The terms that are on."""
    return [(name, value) for name, value in loss.items() if name != "total" and value != 0]


def _figure(value: float) -> str:
    return f"{value:.3f}"

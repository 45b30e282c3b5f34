"""A run with failures, event by event: the independent check of `failure_cost`.

Machines fail at random, each by itself. The run trains from save to save, so many steps apart, is blocked
while the copy is made, and goes on while it is written; the next save waits for the write before. A failure
ends the job, also while it starts: after a restart it goes on from the newest checkpoint that was whole.
Nothing here knows the formulas.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from ppar_dist.doctor.failure_cost import Save


@dataclass
class Outcome:
    """What became of a run.

    Attributes:
        wall_s: from its start to its last step.
        failures: that ended a job of it.
        again_s: steps that were done for nothing.
        blocked_s: spent on saves, waiting for the write before included.
        restart_s: spent on restarts.
        goodput: seconds of the steps that count, as a share of ``wall_s``.
    """

    wall_s: float = 0.0
    failures: int = 0
    again_s: float = 0.0
    blocked_s: float = 0.0
    restart_s: float = 0.0
    goodput: float = 0.0


class Run:
    """One run; `finish` goes through its events until ``steps`` steps count."""

    def __init__(
        self,
        step_s: float,
        every: int,
        save: Save,
        restart_s: float,
        node_mtbf_s: float,
        nodes: int,
        seed: int,
    ) -> None:
        """Seconds throughout; ``every`` is in steps."""
        self.step_s, self.every, self.save, self.restart_s = step_s, every, save, restart_s
        self.node_mtbf_s, self.nodes, self.random = node_mtbf_s, nodes, random.Random(seed)
        self.now, self.step, self.whole = 0.0, 0, 0
        self.writing: tuple[int, float] | None = None  # step of a checkpoint, and when it will be whole
        self.out = Outcome()
        self.fails = self._next_failure()

    def finish(self, steps: int) -> Outcome:
        """Train until ``steps`` are done."""
        while self.step < steps:
            began, ahead = self.now, min(self.every - self.step % self.every, steps - self.step)
            if not self._passes(ahead * self.step_s):
                self.step += int((self.now - began) / self.step_s)  # a part of a step is nothing
                self._fail()
                continue
            self.step += ahead
            if self.step < steps and not self._save():
                self._fail()
        self.out.wall_s, self.out.goodput = self.now, steps * self.step_s / self.now
        return self.out

    def _passes(self, seconds: float) -> bool:
        """Let time pass; False where a machine fails in it, and then it is that moment."""
        end = self.now + seconds
        self.now = min(end, self.fails)
        return end <= self.fails

    def _save(self) -> bool:
        """Whether the save went by without a failure."""
        began = self.now
        waits = max(0.0, self.writing[1] - self.now) if self.writing else 0.0
        survived = self._passes(waits + self.save.blocked_s)
        self.out.blocked_s += self.now - began
        if survived:
            self._note_whole()
            self.writing = (self.step, self.now + self.save.write_s)
            self._note_whole()
        return survived

    def _note_whole(self) -> None:
        if self.writing and self.writing[1] <= self.now:
            self.whole, self.writing = self.writing[0], None

    def _fail(self) -> None:
        """Go back, and restart until a restart succeeds."""
        self._note_whole()
        self.out.again_s += (self.step - self.whole) * self.step_s
        self.step, self.writing = self.whole, None
        began, restarted = self.now, False
        while not restarted:
            self.out.failures += 1
            self.fails = self._next_failure()
            restarted = self._passes(self.restart_s)
        self.out.restart_s += self.now - began

    def _next_failure(self) -> float:
        """Of the first machine to fail; what has no memory may be drawn anew for all."""
        if math.isinf(self.node_mtbf_s):
            return math.inf
        rate = 1 / self.node_mtbf_s
        return self.now + min(self.random.expovariate(rate) for _ in range(self.nodes))

"""Where this rank is, and how it ends: what it tells the others with each beat."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

from ppar_dist.distributed import rendezvous
from ppar_dist.distributed.world import World
from ppar_dist.exit_codes import RESUME
from ppar_dist.processes import proc
from ppar_dist.watchdog.heartbeat import OFF, READING, RUNNING, WAITING, Heartbeat


class Place(NamedTuple):
    """Where the rank is in its work."""

    phase: str
    step: int
    since: float  # by the clock
    before: int  # phases before it in this step


class LastWords(NamedTuple):
    """How the rank ends."""

    state: str = RUNNING
    reason: str = ""
    code: int = RESUME
    since: float = 0.0  # by the clock


class Status:
    """This rank, for all threads: place and last words are replaced whole, so that no lock is needed."""

    def __init__(self, world: World, clock: Callable[[], float], pulse: Callable[[], int]) -> None:
        """A rank outside the steps; ``clock`` gives seconds, ``pulse`` changes while storage is at work."""
        pid = os.getpid()
        self._clock, self._waiting, self._has_peers = clock, world.waiting, world.world_size > 1
        self.me = Heartbeat(
            rank=world.rank,
            host=socket.gethostname(),
            address=rendezvous.own_address(world),
            pid=pid,
            machine=proc.machine(),
            born=proc.born(pid),
        )
        self._pulse, self._last_pulse = pulse, pulse()
        self._place = Place(OFF, 0, clock(), 0)
        self.last_words = LastWords()
        self.awake_since = clock()  # when this process last ran after a pause: time before does not count

    def enter(self, phase: str, step: int) -> None:
        """The rank begins ``phase`` of ``step``."""
        before = self._place.before + 1 if step == self._place.step else 0
        self._place = Place(phase, step, self._clock(), before)

    def progress(self) -> None:
        """The time of the present phase counts from here."""
        self._place = self._place._replace(since=self._clock())

    def end(self, state: str, reason: str, code: int) -> None:
        """From now on the rank is expected to end."""
        self.last_words = LastWords(state, reason, code, self._clock())

    @property
    def is_running(self) -> bool:
        """Whether the rank has not said its last words."""
        return self.last_words.state == RUNNING

    def _feel_pulse(self) -> None:
        """A phase that waits for storage makes progress while requests end, well or badly."""
        now = self._pulse()
        if now != self._last_pulse and self._place.phase in READING:
            self.progress()
        self._last_pulse = now

    def heartbeat(self, beat: int, heard: bool) -> Heartbeat:
        """What the rank tells the others now; ``heard``: that rank 0 is about to end."""
        self._feel_pulse()
        place, words, collective = self._place, self.last_words, self._waiting.name
        return replace(
            self.me,
            phase=place.phase,
            step=place.step,
            before=place.before,
            seconds=self._clock() - max(place.since, self.awake_since),
            collective=collective,
            waits=self._has_peers and bool(collective or place.phase in WAITING),
            beat=beat,
            state=words.state,
            reason=words.reason,
            code=words.code,
            heard=heard,
        )

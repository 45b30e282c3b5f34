"""The watchdog of one rank: tells where the rank is, and ends it if a rank hangs or has died."""

from __future__ import annotations

import faulthandler
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ppar_dist.distributed import failures
from ppar_dist.distributed.board import Board
from ppar_dist.distributed.world import World
from ppar_dist.exit_codes import RESUME
from ppar_dist.storage.progress import attempts
from ppar_dist.watchdog.dump import dump, end_workers
from ppar_dist.watchdog.exchange import ANNOUNCE_S, POLL_S, Exchange
from ppar_dist.watchdog.heartbeat import FAILED, LEFT, TRIPPED, Heartbeat
from ppar_dist.watchdog.judge import Judge
from ppar_dist.watchdog.judgement import Limits, Verdict
from ppar_dist.watchdog.status import Status

_LAST_WORK_S = 20.0  # less than what launchers give a rank after a SIGTERM


class Watchdog:
    """Watches this rank and its peers with two threads. Its methods are for the main thread."""

    def __init__(
        self,
        world: World,
        board: Board,
        stall_s: float,
        peer_s: float,
        folder: Path,
        note_exit: Callable[[int], None] = lambda code: None,
        clock: Callable[[], float] = time.monotonic,
        pulse: Callable[[], int] = attempts,
    ) -> None:
        """Nothing runs before ``start``.

        Args:
            world: this rank.
            board: from ``distributed.open_board``, for this watchdog's use alone.
            stall_s: seconds in one phase after which a rank counts as hung.
            peer_s: seconds of silence after which a rank counts as dead.
            folder: where ``watchdog-rank-00000.txt`` is appended to when a rank is ended.
            note_exit: called with the exit code before this process is ended; it may take a few seconds.
            clock: seconds that never go back.
            pulse: changes whenever a request to object storage has ended.
        """
        self._limits = Limits(stall_s, peer_s, min(1.0, peer_s / 5))
        self._file, self._note_exit = folder / f"watchdog-rank-{world.rank:05d}.txt", note_exit
        self._last_work: Callable[[float], object] = lambda seconds: None
        self._blamed: str | None = None
        self._is_open = False
        self._status = Status(world, clock, pulse)
        self.exchange = Exchange(world, board, self._status, self._limits.beat_s, clock)
        self._judge = Judge(self.exchange, self._limits, self._end, clock)

    def start(self) -> Watchdog:
        """Begin to watch; returns itself."""
        self._is_open = True
        self.exchange.start()
        self._judge.start()
        return self

    def __enter__(self) -> Watchdog:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is not None and self.blame(error) is None:
            self.post_failure(f"{type(error).__name__}: {error}")
        self.close()

    def phase(self, name: str, step: int) -> None:
        """This rank begins the phase ``name`` of ``step``; ``OFF`` is judged for silence alone."""
        self._status.enter(name, step)

    def alive(self) -> None:
        """The present phase makes progress: its time counts from here."""
        self._status.progress()

    def report(self) -> Heartbeat:
        """What this rank would tell the others now; any thread may ask."""
        return self.exchange.report()

    def blame(self, error: BaseException) -> str | None:
        """Who made a collective fail with ``error``: a sentence, which is also posted for the other ranks.

        None if ``error`` is not about another rank. Waits until the board shows who it was, at most
        ``peer_s`` and two beats. From here on this rank is expected to end: it has ``peer_s`` for that.
        """
        if not failures.is_peer_failure(error):
            return None
        if self._blamed is None:
            verdict = self._judge.find_culprit(error)
            self.exchange.say(TRIPPED, verdict.text, verdict.code)
            self.exchange.let_others_hear(self._judge.gone)
            self._blamed = verdict.text
        return self._blamed

    @property
    def name(self) -> str:
        """This rank and its host, as messages name them."""
        return self._status.me.name

    @property
    def code(self) -> int:
        """The exit code that follows from what ``blame`` has found or ``post_failure`` has said."""
        return self._status.last_words.code

    def before_end(self, work: Callable[[float], object]) -> None:
        """Have ``work(seconds)`` called before this process is ended; it may take so many seconds.

        For what needs no other rank: a checkpoint that a thread is writing.
        """
        self._last_work = work

    def post_failure(self, text: str, code: int = RESUME) -> None:
        """Tell the other ranks that this one fails, why, and with which code they are to end for it.

        They do so at once where a collective fails, else within seconds. From here on this rank is expected
        to end: it has ``peer_s`` for that. Does nothing after another last word.
        """
        if self._status.is_running:
            self._say_last(FAILED, f"{self._status.me.name} fails: {text}", code)

    def close(self) -> None:
        """Tell the others that this rank has ended as it should, unless it failed, and stop both threads."""
        if not self._is_open:
            return
        if self._status.is_running:
            self._say_last(LEFT, "", RESUME)
        self._is_open = False
        self._judge.close(ANNOUNCE_S if self.exchange.has_contact() else POLL_S)
        self.exchange.close()

    def _say_last(self, state: str, reason: str, code: int) -> None:
        self.exchange.say(state, reason, code)
        if self.exchange.board.hosted_here:  # the board ends with this process
            self.exchange.let_others_hear(self._judge.gone)

    def _end(self, verdict: Verdict) -> None:
        """End this process: its main thread may never come back to do so."""
        faulthandler.cancel_dump_traceback_later()
        dump(verdict.text, self._judge.view().table(), self._file)
        self.exchange.let_others_hear(self._judge.gone)
        end_workers()
        try:
            self._last_work(min(self._limits.peer_s, _LAST_WORK_S))
            self._note_exit(verdict.code)
        finally:
            os._exit(verdict.code)

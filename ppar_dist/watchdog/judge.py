"""The judge of one rank: looks at what was heard, and when, and decides whether the rank must end.

Its thread never touches the network.
"""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable

from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.watchdog.exchange import Exchange
from ppar_dist.watchdog.heartbeat import LEFT, TRIPPED, Heartbeat
from ppar_dist.watchdog.judgement import Limits, Seen, Verdict, View, judge, judge_failure, no_culprit

_STACKS_AT = 0.7  # of peer_s: the others give a silent rank up after peer_s less a beat, 0.8 or more of it


class Judge:
    """Judges four times a beat; what it decides is final."""

    def __init__(
        self, exchange: Exchange, limits: Limits, end: Callable[[Verdict], None], clock: Callable[[], float]
    ) -> None:
        """Nothing runs before ``start``; ``end`` is called with the verdict, on this thread."""
        self._exchange, self._status = exchange, exchange.status
        self._limits, self._end, self._clock = limits, end, clock
        self._began = clock()
        self.gone: dict[int, float] = {}  # when the process of a rank was first missed, by the clock
        self._verdict_lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watchdog-judge", daemon=True)

    def start(self) -> None:
        """Begin to judge."""
        self._began = self._clock()
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop the thread."""
        self._closed.set()
        self._thread.join(timeout_s)
        faulthandler.cancel_dump_traceback_later()

    def find_culprit(self, error: BaseException) -> Verdict:
        """Who made a collective fail with ``error``; waits at most ``peer_s`` and two beats.

        This rank is then judged no more: it is expected to end.
        """
        self._verdict_lock.acquire()  # for good: if the thread was first, the rank is ended meanwhile
        deadline = self._clock() + self._limits.peer_s + 2 * self._limits.beat_s
        while self._clock() < deadline:
            self._exchange.hurry()
            time.sleep(self._limits.beat_s / 4)
            verdict = judge_failure(self.view(), self._limits)
            if verdict is not None:
                return verdict
        return no_culprit(self.view(), error)

    def view(self) -> View:
        """All that this rank knows now."""
        exchange, now, awake = self._exchange, self._clock(), self._status.awake_since
        contact = exchange.contact
        peers = {
            rank: Seen(
                heard.report,
                age_s=now - max(heard.at, awake),
                silent_s=max(0.0, contact - max(heard.at, awake)),
                process=self._process(heard.report, now),
            )
            for rank, heard in exchange.peers.items()
        }
        missing = set(range(exchange.world.world_size)) - {exchange.world.rank} - set(peers)
        return View(
            exchange.report(),
            peers,
            tuple(sorted(missing)),
            exchange.board.where,
            exchange.trouble,
            exchange.board.hosted_here,
            contact_s=now - max(contact, awake),
            watched_s=now - max(self._began, awake),
        )

    def _loop(self) -> None:
        last = self._clock()
        while not self._closed.wait(self._limits.beat_s / 4):
            now = self._clock()
            if now - last > self._limits.peer_s / 2:
                # This process was stopped, or an extension held the interpreter's lock: its own silence.
                self._status.awake_since = now
            last = now
            # Where the lock is held for good, no thread of ours runs: let the stacks be written without it.
            faulthandler.dump_traceback_later(_STACKS_AT * self._limits.peer_s, file=2)
            self._act(now)

    def _act(self, now: float) -> None:
        words = self._status.last_words
        if not self._status.is_running:
            if words.state != LEFT and now - words.since > self._limits.peer_s:
                self._end(Verdict(f"{words.reason}; and this rank does not end", words.code))
            return
        verdict = judge(self.view(), self._limits)
        if verdict is not None and self._verdict_lock.acquire(blocking=False):
            self._exchange.say(TRIPPED, verdict.text, verdict.code)
            self._end(verdict)

    def _process(self, report: Heartbeat, now: float) -> Process:
        """What has become of a rank's process, where this can be known.

        Gone only if the board was read since, or does not answer: the rank's last words come before its end.
        """
        machine = self._status.me.machine
        if not machine or report.machine != machine:
            return Process.UNKNOWN
        found = proc.look(report.pid, report.born)
        if found is Process.GONE:
            missed = self.gone.setdefault(report.rank, now)
            if self._exchange.read_began <= missed and now - missed <= 2 * self._limits.beat_s:
                return Process.UNKNOWN
        return found

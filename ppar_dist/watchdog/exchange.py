"""The exchange with the other ranks: tells the board about this one, and keeps what the others say.

Its thread alone talks to the board, and may block there for as long as a broken network likes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Container
from typing import NamedTuple

from ppar_dist.distributed.board import Board, BoardUnreachable
from ppar_dist.distributed.world import World
from ppar_dist.watchdog.heartbeat import RUNNING, Heartbeat
from ppar_dist.watchdog.status import Status

ANNOUNCE_S = 1.0  # for the board to take this rank's last words
POLL_S = 0.02


class Heard(NamedTuple):
    """The newest report of another rank."""

    report: Heartbeat
    at: float  # when it was new here, by the clock


class Exchange:
    """Reads and posts on the board once a beat."""

    def __init__(
        self, world: World, board: Board, status: Status, beat_s: float, clock: Callable[[], float]
    ) -> None:
        """Nothing runs before ``start``; ``beat_s`` seconds pass between beats."""
        self.world, self.board, self.status = world, board, status
        self._beat_s, self._clock, self._beat = beat_s, clock, 0
        self.peers: dict[int, Heard] = {}  # by rank; replaced whole, so that no lock is needed
        self.trouble = ""  # why the board cannot be reached
        self.asking = False  # the thread is waiting for the board
        self.read_began = self.contact = clock()  # the last reading of the board: its begin, its end
        self._announced, self._wake, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._loop, name="watchdog-exchange", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self.read_began = self.contact = self.status.awake_since = self._clock()
        self._thread.start()

    def close(self) -> None:
        """Stop the thread; it may be held by the network, so the wait is bounded."""
        self._closed.set()
        self._wake.set()
        self._thread.join(ANNOUNCE_S if self.has_contact() else POLL_S)

    def hurry(self) -> None:
        """Make the next beat now."""
        self._wake.set()

    def say(self, state: str, reason: str, code: int) -> None:
        """Post this rank's last words, if the board takes them in time."""
        self.status.end(state, reason, code)
        self.hurry()
        if self.has_contact():
            self._announced.wait(ANNOUNCE_S)

    def report(self) -> Heartbeat:
        """What this rank tells the others now; any thread may ask."""
        return self.status.heartbeat(self._beat, heard=0 in self.peers and not _is_running(self.peers[0]))

    def has_contact(self) -> bool:
        """Whether the board answered at the last beat, so that it is worth waiting for.

        That may be long ago where this process was stopped, and has not asked the board since.
        """
        is_late = self._clock() - self.contact > 2 * self._beat_s
        return not self.trouble and not (is_late and self.asking)

    def let_others_hear(self, gone: Container[int]) -> None:
        """Wait, for a bounded time, until every other rank ends too, or knows that the board does.

        ``gone``: ranks whose process is missing.
        """
        deadline = self._clock() + 2 * self._beat_s + ANNOUNCE_S
        while self._clock() < deadline and self.has_contact():
            others = set(range(self.world.world_size)) - {self.world.rank}
            if all(rank in gone or self._is_aware(rank) for rank in others):
                return
            self.hurry()
            time.sleep(POLL_S)

    def hear(self, texts: dict[int, str]) -> None:
        """Keep what the ranks have posted, with the time of what is new."""
        now, peers = self._clock(), dict(self.peers)
        for rank, text in texts.items():
            if rank != self.world.rank:
                report = Heartbeat.from_text(text)
                if rank not in peers or peers[rank].report.beat != report.beat:
                    peers[rank] = Heard(report, now)
        self.peers = peers
        self.contact = now

    def _is_aware(self, rank: int) -> bool:
        """Whether it makes no sense to wait for ``rank``: it knows, or will never listen again."""
        heard = self.peers.get(rank)
        if heard is None:
            return False
        is_quiet = self._clock() - heard.at > 3 * self._beat_s
        return is_quiet or not _is_running(heard) or (self.board.hosted_here and heard.report.heard)

    def _loop(self) -> None:
        while not self._closed.is_set():
            self._exchange()
            everybody = len(self.peers) == self.world.world_size - 1
            self._wake.wait(self._beat_s if everybody else self._beat_s / 10)
            self._wake.clear()
        if not self.status.is_running and not self._announced.is_set():
            self._exchange()  # this process was stopped just now

    def _exchange(self) -> None:
        """One beat: hear the others, then speak, so that what was heard is acknowledged at once."""
        began = self._clock()
        self.asking = True
        try:
            self.hear(self.board.read())
            self.read_began = began
            self._beat += 1
            report = self.report()
            self.board.post(report.to_text())
            if report.state == self.status.last_words.state != RUNNING:
                self._announced.set()
            self.trouble = ""
        except BoardUnreachable as error:  # how long ago the last contact was is for the judge
            self.trouble = str(error)
        finally:
            self.asking = False


def _is_running(heard: Heard) -> bool:
    return heard.report.state == RUNNING

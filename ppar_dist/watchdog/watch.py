"""The watchdog of one rank: it tells where the rank is, listens to the others, and ends the rank if it must.

Two threads. The beat thread alone talks to the board, and may block there for as long as a broken network
likes. The judge thread never touches the network: it looks at what was heard, and when.
"""

from __future__ import annotations

import faulthandler
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

from ppar_dist.distributed import failures, rendezvous
from ppar_dist.distributed.board import Board, BoardUnreachable
from ppar_dist.distributed.world import World
from ppar_dist.exit_codes import RESUME
from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.watchdog.dump import dump, end_workers
from ppar_dist.watchdog.heartbeat import FAILED, LEFT, OFF, RUNNING, TRIPPED, WAITING, Heartbeat
from ppar_dist.watchdog.judgement import Limits, Seen, Verdict, View, judge, judge_failure, no_culprit

_ANNOUNCE_S = 1.0  # for the board to take this rank's last words
_POLL_S = 0.02
_LAST_WORK_S = 20.0  # less than what launchers give a rank after a SIGTERM
_STACKS_AT = 0.7  # of peer_s: the others give a silent rank up after peer_s less a beat, 0.8 or more of it


class Watchdog:
    """Watches this rank and its peers. All methods are for the main thread."""

    def __init__(
        self,
        world: World,
        board: Board,
        stall_s: float,
        peer_s: float,
        folder: Path,
        note_exit: Callable[[int], None] = lambda code: None,
    ) -> None:
        """Nothing runs before ``start``.

        Args:
            world: this rank.
            board: from ``distributed.open_board``, for this watchdog's use alone.
            stall_s: seconds in one phase after which a rank counts as hung.
            peer_s: seconds of silence after which a rank counts as dead.
            folder: where ``watchdog-rank-00000.txt`` is appended to when a rank is ended.
            note_exit: called with the exit code before this process is ended; it may take a few seconds.
        """
        self._world, self._board, self._note_exit = world, board, note_exit
        self._last_work: Callable[[float], object] = lambda seconds: None
        self._limits = Limits(stall_s, peer_s, min(1.0, peer_s / 5))
        self._file = folder / f"watchdog-rank-{world.rank:05d}.txt"
        pid = os.getpid()
        self._machine = proc.machine()
        self._self = (world.rank, socket.gethostname(), rendezvous.own_address(world), pid, self._machine)
        self._born = proc.born(pid)
        # Phase, step, since when, phases before it in this step; replaced whole, so that no lock is needed.
        self._now = (OFF, 0, time.monotonic(), 0)
        self._last_words: tuple[str, str, int] = (RUNNING, "", RESUME)
        self._ending_since = 0.0
        self._blamed: str | None = None
        self._beat = 0
        self._trouble = ""  # why the board cannot be reached
        self._asking = False  # the beat thread is waiting for the board
        self._peers: dict[int, tuple[Heartbeat, float]] = {}  # and when this report was new here
        self._gone: dict[int, float] = {}  # when the process of a rank was first missed
        self._read_began = self._contact = self._began = self._floor = time.monotonic()
        self._announced, self._wake, self._closed = threading.Event(), threading.Event(), threading.Event()
        self._verdict_lock = threading.Lock()
        self._threads: list[threading.Thread] = []

    def start(self) -> Watchdog:
        """Begin to watch; returns itself."""
        self._read_began = self._contact = self._began = self._floor = time.monotonic()
        for target in (self._beat_loop, self._judge_loop):
            thread = threading.Thread(target=target, name=f"watchdog{target.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
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
        _, last, _, before = self._now
        self._now = (name, step, time.monotonic(), before + 1 if step == last else 0)

    def alive(self) -> None:
        """The present phase makes progress: its time counts from here."""
        name, step, _, before = self._now
        self._now = (name, step, time.monotonic(), before)

    def blame(self, error: BaseException) -> str | None:
        """Who made a collective fail with ``error``: a sentence, also told to the other ranks.

        None if ``error`` is not about another rank. Waits until the board shows who it was, at most
        ``peer_s`` and two beats. From here on this rank is expected to end: it has ``peer_s`` for that.
        """
        if not failures.is_peer_failure(error):
            return None
        if self._blamed is None:
            self._verdict_lock.acquire()  # for good: if the judge was first, the rank is ended meanwhile
            verdict = self._find_culprit(error)
            self._say(TRIPPED, verdict.text, verdict.code)
            self._let_others_hear()
            self._blamed = verdict.text
        return self._blamed

    @property
    def code(self) -> int:
        """The exit code that follows from what ``blame`` has found or ``post_failure`` has said."""
        return self._last_words[2]

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
        if self._last_words[0] == RUNNING:
            rank, host, *_ = self._self
            self._say(FAILED, f"rank {rank} on {host} fails: {text}", code)
            if self._board.hosted_here:
                self._let_others_hear()

    def close(self) -> None:
        """Tell the others that this rank has ended as it should, unless it failed, and stop both threads."""
        if self._closed.is_set() or not self._threads:
            return
        if self._last_words[0] == RUNNING:
            self._say(LEFT, "", RESUME)
            if self._board.hosted_here:
                self._let_others_hear()
        self._closed.set()
        self._wake.set()
        for thread in self._threads:
            thread.join(_ANNOUNCE_S if self._has_contact() else _POLL_S)  # it may be held by the network
        faulthandler.cancel_dump_traceback_later()

    def _find_culprit(self, error: BaseException) -> Verdict:
        deadline = time.monotonic() + self._limits.peer_s + 2 * self._limits.beat_s
        while time.monotonic() < deadline:
            self._wake.set()
            time.sleep(self._limits.beat_s / 4)
            verdict = judge_failure(self._view(), self._limits)
            if verdict is not None:
                return verdict
        return no_culprit(self._view(), error)

    def _say(self, state: str, reason: str, code: int) -> None:
        """Post this rank's last words, if the board takes them in time."""
        self._last_words = (state, reason, code)
        self._ending_since = time.monotonic()
        self._wake.set()
        if self._has_contact():
            self._announced.wait(_ANNOUNCE_S)

    def _has_contact(self) -> bool:
        """Whether the board answered at the last beat, so that it is worth waiting for.

        That may be long ago where this process stood still, and does not wait for the board since.
        """
        is_late = time.monotonic() - self._contact > 2 * self._limits.beat_s
        return not self._trouble and not (is_late and self._asking)

    def _let_others_hear(self) -> None:
        """Wait, for a bounded time, until every other rank ends too, or knows that the board does."""
        deadline = time.monotonic() + 2 * self._limits.beat_s + _ANNOUNCE_S
        while time.monotonic() < deadline and self._has_contact():
            if all(self._is_aware(rank) for rank in range(self._world.world_size)):
                return
            self._wake.set()
            time.sleep(_POLL_S)

    def _is_aware(self, rank: int) -> bool:
        """Whether it makes no sense to wait for ``rank``: it knows, or will never listen again."""
        if rank == self._world.rank or rank in self._gone:
            return True
        if rank not in self._peers:
            return False
        report, new = self._peers[rank]
        is_quiet = time.monotonic() - new > 3 * self._limits.beat_s
        return is_quiet or report.state != RUNNING or (self._board.hosted_here and report.heard)

    # The beat thread.

    def _beat_loop(self) -> None:
        while not self._closed.is_set():
            self._exchange()
            everybody = len(self._peers) == self._world.world_size - 1
            self._wake.wait(self._limits.beat_s if everybody else self._limits.beat_s / 10)
            self._wake.clear()
        if self._last_words[0] != RUNNING and not self._announced.is_set():
            self._exchange()  # this process stood still just now

    def _exchange(self) -> None:
        """One beat: hear the others, then speak, so that what was heard is acknowledged at once."""
        began = time.monotonic()
        self._asking = True
        try:
            self._hear(self._board.read())
            self._read_began = began
            self._beat += 1
            report = self.report()
            self._board.post(report.to_text())
            if report.state == self._last_words[0] != RUNNING:
                self._announced.set()
            self._trouble = ""
        except BoardUnreachable as error:  # how long ago the last contact was is for the judge
            self._trouble = str(error)
        finally:
            self._asking = False

    def _hear(self, texts: dict[int, str]) -> None:
        now, peers = time.monotonic(), dict(self._peers)
        for rank, text in texts.items():
            if rank != self._world.rank:
                report = Heartbeat.from_text(text)
                if rank not in peers or peers[rank][0].beat != report.beat:
                    peers[rank] = (report, now)
        self._peers = peers
        self._contact = now

    def report(self) -> Heartbeat:
        """What this rank would tell the others now; any thread may ask."""
        phase, step, since, before = self._now
        collective = self._world.waiting.name
        state, reason, code = self._last_words
        rank, host, address, pid, machine = self._self
        return Heartbeat(
            rank,
            host,
            address,
            pid,
            machine,
            self._born,
            phase,
            step,
            before=before,
            seconds=time.monotonic() - max(since, self._floor),
            collective=collective,
            waits=self._world.world_size > 1 and bool(collective or phase in WAITING),
            beat=self._beat,
            state=state,
            reason=reason,
            code=code,
            heard=0 in self._peers and self._peers[0][0].state != RUNNING,
        )

    # The judge thread.

    def _judge_loop(self) -> None:
        tick_s = self._limits.beat_s / 4
        last = time.monotonic()
        while not self._closed.wait(tick_s):
            now = time.monotonic()
            if now - last > self._limits.peer_s / 2:
                # This process was stopped, or an extension held the interpreter's lock: its own silence.
                self._floor = now
            last = now
            # Where the lock is held for good, no thread of ours runs: let the stacks be written without it.
            faulthandler.dump_traceback_later(_STACKS_AT * self._limits.peer_s, file=2)
            self._act(now)

    def _act(self, now: float) -> None:
        state, reason, code = self._last_words
        if state != RUNNING:
            if state != LEFT and now - self._ending_since > self._limits.peer_s:
                self._end(Verdict(f"{reason}; and this rank does not end", code))
            return
        verdict = judge(self._view(), self._limits)
        if verdict is not None and self._verdict_lock.acquire(blocking=False):
            self._say(TRIPPED, verdict.text, verdict.code)
            self._end(verdict)

    def _end(self, verdict: Verdict) -> None:
        """End this process: its main thread may never come back to do so."""
        faulthandler.cancel_dump_traceback_later()
        dump(verdict.text, self._view().table(), self._file)
        self._let_others_hear()
        end_workers()
        try:
            self._last_work(min(self._limits.peer_s, _LAST_WORK_S))
            self._note_exit(verdict.code)
        finally:
            os._exit(verdict.code)

    def _view(self) -> View:
        now, floor, contact = time.monotonic(), self._floor, self._contact
        peers = {
            rank: Seen(
                report,
                age_s=now - max(new, floor),
                silent_s=max(0.0, contact - max(new, floor)),
                process=self._process(report, now),
            )
            for rank, (report, new) in self._peers.items()
        }
        missing = set(range(self._world.world_size)) - {self._world.rank} - set(peers)
        return View(
            self.report(),
            peers,
            tuple(sorted(missing)),
            self._board.where,
            self._trouble,
            self._board.hosted_here,
            contact_s=now - max(contact, floor),
            watched_s=now - max(self._began, floor),
        )

    def _process(self, report: Heartbeat, now: float) -> Process:
        """What has become of a rank's process, where this can be known.

        Gone only if the board was read since, or does not answer: the rank's last words come before its end.
        """
        if not self._machine or report.machine != self._machine:
            return Process.UNKNOWN
        found = proc.look(report.pid, report.born)
        if found is Process.GONE:
            missed = self._gone.setdefault(report.rank, now)
            if self._read_began <= missed and now - missed <= 2 * self._limits.beat_s:
                return Process.UNKNOWN
        return found

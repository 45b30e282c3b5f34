"""At most one job works in a run's folder: ``run.lock`` names it, and shows that it lives.

The holder rewrites the file every beat. Another job believes what changes before its eyes, no clock and no
scheduler: a lock that stays the same for ``silent_s`` is a dead job's, and is taken over. On one machine the
process itself tells, without waiting. A holder that lives is given as long, since it may be saving its last
checkpoint. One that dies in the first half of that wait is taken for dead ``silent_s`` after its last beat,
so that the wait may last half as long again: a shorter one would rob jobs whose storage stalls.
It needs no locks of the file system, which shared storage often lacks; only that a link or an exclusive
create succeeds once.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO

from ppar_dist.errors import InUse
from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process

NAME = "run.lock"
_LOOK_S = 0.2


@dataclass(frozen=True)
class Holder:
    """What a lock says about the job that holds it."""

    id: str
    host: str
    pid: int
    born: int  # ticks since that machine's start
    machine: str
    job: str  # of a scheduler, if there is one
    since: str  # local time
    beat: int

    def to_text(self) -> str:
        """As a file holds it; the same length at every beat."""
        return json.dumps(asdict(self) | {"beat": f"{self.beat:012d}"}) + "\n"

    @staticmethod
    def from_text(text: str) -> Holder | None:
        """None where ``text`` is no lock, or is being written."""
        try:
            facts = json.loads(text)
            return Holder(**facts | {"beat": int(facts["beat"])})
        except (ValueError, TypeError, KeyError):
            return None

    def describe(self) -> str:
        """Who it is, in words."""
        job = f"{self.job}, " if self.job else ""
        return f"{job}process {self.pid} on {self.host}, since {self.since}"


def read_holder(folder: Path) -> Holder | None:
    """Who holds the run in ``folder``, dead or alive; None if nobody does."""
    text = _read(folder / NAME)
    return None if text is None else Holder.from_text(text)


@dataclass(frozen=True)
class State:
    """A lock as a bystander sees it; ``lives`` is None where it is another machine's."""

    text: str
    lives: bool | None
    age_s: float


def read_state(folder: Path) -> State | None:
    """What can be told at once about the job that holds ``folder``; None if there is no lock."""
    try:
        age_s = max(0.0, time.time() - (folder / NAME).stat().st_mtime)
    except OSError:
        return None
    holder = read_holder(folder)
    if holder is None:
        return State("another job", None, age_s)
    found = _look(holder)
    lives = None if found is Process.UNKNOWN else found is not Process.GONE
    return State(holder.describe(), lives, age_s)


class RunLock:
    """One job's claim to a run's folder."""

    def __init__(self, folder: Path, silent_s: float, job: str = "") -> None:
        """Nothing is claimed yet.

        Args:
            folder: the run's.
            silent_s: seconds without a beat after which a holder on another machine counts as dead, and after
                which this job gives up on one that lives.
            job: what a scheduler calls this job, for messages.
        """
        self._path, self._silent_s = folder / NAME, silent_s
        pid = os.getpid()
        self._self = Holder(
            uuid.uuid4().hex,
            socket.gethostname(),
            pid,
            proc.born(pid),
            proc.machine(),
            job,
            time.strftime("%Y-%m-%d %H:%M:%S"),
            0,
        )
        self._file: IO[str] | None = None  # while it is held: what a taker has put aside is written in vain
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_lost: Callable[[str], object] = lambda text: None

    def acquire(
        self, say: Callable[[str], object] = lambda text: None, alive: Callable[[], object] = lambda: None
    ) -> None:
        """Take the folder for this job; waits for a holder that may be dead, or ending.

        For ``silent_s``, and up to 1.5 times that where it beat at first and then no more.

        Args:
            say: called with a sentence before waiting.
            alive: called several times a second while waiting.

        Raises:
            InUse: another job works in it.
            OSError: the folder cannot be written.
        """
        if self._file is not None:
            return
        while not self._create():
            text = _read(self._path)
            if text is not None:
                text = self._wait_for_holder(self._path, text, say, alive)
            if text is not None:
                self._take_over(text, alive)
        self._thread = threading.Thread(target=self._beat_loop, name="run-lock", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Give the folder back; does nothing if it is not held."""
        self._end.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(self._beat_s)
        if self._file is not None:
            with contextlib.suppress(OSError):
                if self._is_mine():
                    self._path.unlink()
            self._file.close()
            self._file = None

    @property
    def _beat_s(self) -> float:
        return min(5.0, self._silent_s / 6)

    def _create(self) -> bool:
        """Put the file there, whole, unless there is one."""
        file = self._put(self._path)
        if file is None:
            return False
        self._file = file
        return True

    def _put(self, path: Path) -> IO[str] | None:
        """A new file that says who this job is, whole from the start; None where there is one."""
        own = self._path.with_name(f".{NAME}.{self._self.id}")
        file = own.open("w", encoding="utf-8")
        try:
            _write(file, self._self)
            try:
                os.link(own, path)
            except FileExistsError:
                if not _is_same(own, path):  # network storage may answer a repeated request
                    raise
            except OSError:  # storage without links
                file.close()
                file = path.open("x", encoding="utf-8")
                _write(file, self._self)
        except FileExistsError:
            file.close()
            return None
        finally:
            own.unlink()
        return file

    def _wait_for_holder(
        self, path: Path, text: str, say: Callable[[str], object], alive: Callable[[], object]
    ) -> str | None:
        """Wait until whoever wrote ``path`` has gone; returns what it wrote last, None for nothing.

        The holder may change meanwhile: another job that waits, too, may get the folder first.

        Args:
            path: the lock, or the right to take it over.
            text: what the holder wrote.
            say: called with a sentence before waiting.
            alive: called at every look.

        Raises:
            InUse: after ``silent_s`` it still lives. Where that is not clear, the wait is longer by half.
        """
        began = changed = time.monotonic()
        holder, told = Holder.from_text(text), False
        while (found := _look(holder)) is not Process.GONE:
            now = time.monotonic()
            if now - began > self._silent_s:
                beats = changed > began and now - changed < self._silent_s / 2  # three of them, at least
                if beats or found is not Process.UNKNOWN:
                    raise InUse(self._refusal(holder))
                if now - changed > self._silent_s:
                    break
            if not told:
                told = True
                who = "another job" if holder is None else holder.describe()
                say(f"{path} is held by {who}; waiting {self._silent_s:.0f} s for its end")
            time.sleep(_LOOK_S)
            alive()
            newer = _read(path)
            if newer is None:
                return None
            if newer != text:
                text, changed = newer, time.monotonic()
                holder = Holder.from_text(text) or holder
        return text

    def _refusal(self, holder: Holder | None) -> str:
        who = "another job" if holder is None else holder.describe()
        return f"{self._path.parent} is in use by {who}; end that job, or give another run.dir"

    def _take_over(self, text: str, alive: Callable[[], object]) -> None:
        """Take away a dead job's lock, if nobody else does: one that was slower to do so would take away the
        lock of the job that was faster."""
        right = self._path.with_name(f".{NAME}.takeover")
        file = self._put(right)
        if file is None:
            other = _read(right)
            last = None if other is None else self._wait_for_holder(right, other, lambda text: None, alive)
            if last is not None and _read(right) == last:
                right.unlink(missing_ok=True)  # its holder died at it
            return
        try:
            if _read(self._path) == text:
                self._remove(text)
        finally:
            file.close()
            right.unlink(missing_ok=True)

    def _remove(self, text: str) -> None:
        """Take away a dead job's lock; if that job lived after all, another's may be there by now."""
        aside = self._path.with_name(f".{NAME}.dead.{self._self.id}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        if _read(aside) != text:
            with contextlib.suppress(OSError):
                os.link(aside, self._path)
        aside.unlink()

    def _beat_loop(self) -> None:
        beat = 0
        while not self._end.wait(self._beat_s):
            beat += 1
            # Storage fails, or the folder was deleted: the job sees to that. A closed file is a ValueError:
            # `close` waits for this thread no longer than a beat, and storage may hold it for longer.
            with contextlib.suppress(OSError, ValueError):
                is_there = self._path.exists()
                if self._end.is_set():
                    return
                if not is_there:  # somebody deleted it
                    self._create()
                elif not self._is_mine():
                    if not self._end.is_set():
                        self.on_lost(self._refusal(read_holder(self._path.parent)))
                    return
                if self._file is not None:
                    _write(self._file, replace(self._self, beat=beat))

    def _is_mine(self) -> bool:
        return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


def _look(holder: Holder | None) -> Process:
    """What this machine knows of a holder's process."""
    if holder is None or not holder.machine or holder.machine != proc.machine():
        return Process.UNKNOWN
    return proc.look(holder.pid, holder.born)


def _write(file: IO[str], holder: Holder) -> None:
    """Rewrite a lock in place, so that others see it."""
    file.seek(0)
    file.write(holder.to_text())
    file.flush()
    os.fsync(file.fileno())


def _is_same(one: Path, other: Path) -> bool:
    """Whether two names are of one file; not where one has just been removed, as a dead job's lock is."""
    try:
        return os.path.samefile(one, other)
    except FileNotFoundError:
        return False


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None

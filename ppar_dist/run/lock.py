"""At most one job works in a run's folder: ``run.lock`` names it, and shows that it lives.

The holder rewrites the file every beat. Another job trusts the changes that it sees itself, no clock and no
scheduler: a lock that stays the same for ``silent_s`` is a dead job's, and is taken over. On one machine
the kernel tells whether the process lives, without waiting. A holder that lives is waited for as long: it may
be saving its last checkpoint. One that dies in the first half of that wait counts as dead ``silent_s`` after
its last beat, so the wait may last half as long again: a shorter one would rob jobs whose storage stalls.

It needs no locks of the file system, which shared storage often lacks; only that a link or an exclusive
create succeeds once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

from ppar_dist.errors import InUse
from ppar_dist.processes import proc
from ppar_dist.run.holder import Holder, Verdict, Watched, describe, read_holder, read_text
from ppar_dist.run.paths import LOCK

LOOK_S = 0.2  # between two looks at another job's lock

log = logging.getLogger(__name__)


class RunLock:
    """One job's claim to a run's folder."""

    def __init__(
        self,
        folder: Path,
        silent_s: float,
        job: str = "",
        write: Callable[[IO[str], Holder], object] | None = None,
    ) -> None:
        """Nothing is claimed yet.

        Args:
            folder: the run's.
            silent_s: seconds without a beat after which a holder on another machine counts as dead, and after
                which this job gives up on one that lives.
            job: what a scheduler calls this job, for messages.
            write: rewrites a lock in place; default: ``write_in_place``.
        """
        self._path, self._silent_s, self._write = folder / LOCK, silent_s, write or write_in_place
        self._right = self._path.with_name(f".{LOCK}.takeover")  # one job at a time takes a lock over
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
        # Open while the lock is held: writes to a file that another job has moved away have no effect.
        self._file: IO[str] | None = None
        self._watched: Watched | None = None  # while another job holds it
        self._end = threading.Event()
        self._thread: threading.Thread | None = None
        self.on_lost: Callable[[str], object] = lambda text: None

    def try_acquire(self) -> bool:
        """Take the folder for this job, unless a holder may live: then call again after ``LOOK_S``.

        So a holder that may be dead, or ending, is waited for: for ``silent_s``, and up to 1.5 times that
        where it beat at first and then no more. The first call that has to wait logs for whom.

        Raises:
            InUse: another job works in it.
            OSError: the folder cannot be written.
        """
        while self._file is None:
            watched = self._watched = self._look()
            if watched is None:
                continue
            verdict = watched.verdict(self._silent_s)
            if verdict is Verdict.UNCLEAR:
                self._log_wait(watched)
                return False
            self._watched = None
            if verdict is Verdict.ALIVE:
                raise InUse(self._refusal(watched.holder))
            self._watched = self._take_over(watched)
        return True

    def _look(self) -> Watched | None:
        """The lock that is in the way; None where this job has just got the folder, or may get it now."""
        if self._watched is not None:
            return self._watched if self._watched.look() else None
        if self._create():
            self._thread = threading.Thread(target=self._beat_loop, name="run-lock", daemon=True)
            self._thread.start()
            return None
        text = read_text(self._path)
        return None if text is None else Watched(self._path, text)

    def _log_wait(self, watched: Watched) -> None:
        if watched.path == self._path and not watched.is_logged:
            watched.is_logged = True
            who = describe(watched.holder)
            log.warning("%s is held by %s; waiting %.0f s for its end", self._path, who, self._silent_s)

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
        own = self._path.with_name(f".{LOCK}.{self._self.id}")
        file = own.open("w", encoding="utf-8")
        try:
            self._write(file, self._self)
            try:
                os.link(own, path)
            except FileExistsError:
                if not _is_same(own, path):  # network storage may answer a repeated request
                    raise
            except OSError:  # storage without links
                file.close()
                file = path.open("x", encoding="utf-8")
                self._write(file, self._self)
        except FileExistsError:
            file.close()
            return None
        finally:
            own.unlink()
        return file

    def _refusal(self, holder: Holder | None) -> str:
        return f"{self._path.parent} is in use by {describe(holder)}; end that job, or give another run.dir"

    def _take_over(self, dead: Watched) -> Watched | None:
        """Remove a dead job's lock, unless another job is doing so: returns that one's right, to be watched.

        Without the right, a slower job would remove the lock of a faster one.
        """
        if dead.path == self._right:  # its holder died at it
            if read_text(self._right) == dead.text:
                self._right.unlink(missing_ok=True)
            return None
        file = self._put(self._right)
        if file is None:
            other = read_text(self._right)
            return None if other is None else Watched(self._right, other)
        try:
            if read_text(self._path) == dead.text:
                self._remove(dead.text)
        finally:
            file.close()
            self._right.unlink(missing_ok=True)
        return None

    def _remove(self, text: str) -> None:
        """Remove a dead job's lock; if that job lived after all, another's may be there by now."""
        aside = self._path.with_name(f".{LOCK}.dead.{self._self.id}")
        try:
            self._path.rename(aside)
        except FileNotFoundError:
            return
        if read_text(aside) != text:
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
                    self._write(self._file, replace(self._self, beat=beat))

    def _is_mine(self) -> bool:
        return self._file is not None and os.path.samestat(os.fstat(self._file.fileno()), self._path.stat())


def write_in_place(file: IO[str], holder: Holder) -> None:
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

"""Signals that ask a rank to stop: recorded, and obeyed by all ranks together at the next step boundary.

SIGTERM, SIGUSR1 (schedulers), SIGINT (a user) and SIGHUP (a closed terminal, unless nohup) set a flag,
which the trainer adds to the buffer that a step sums over the ranks: so all ranks see it after the same
step, save a checkpoint and end. A later signal, or the end of the grace time, ends the process at once; the
newest published checkpoint is then what a restart finds. A signal before the ranks have met leaves them a
few seconds to meet: one of them may have been killed, and the others would wait for it.

Launchers send one signal more than once: to the whole process group, and again to each rank. Signals
within two seconds of the first are the same request. So is the first with another number, within 30 seconds:
a scheduler signals every process, and the command passes it on to the ranks as SIGUSR1, perhaps late. So is
one more after the request was obeyed: launchers signal the other ranks when the first has ended. SIGHUP never
forces an exit: a user who has asked for the end may close the terminal.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import NoReturn

from ppar_dist import exit_codes
from ppar_dist.processes.rank_log import to_job_log

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
SAME_REQUEST_S = 2.0
_PASSED_ON_S = 30.0
_MEET_S = 15.0  # launchers kill ranks 30 s after they have signalled them


def requests() -> tuple[signal.Signals, ...]:
    """Signals that ask to stop: ``SIGNALS``, and SIGHUP unless it is ignored, as by nohup."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return SIGNALS if ignored else (*SIGNALS, signal.SIGHUP)


class Preempted(Exception):  # not an error: the run ends on request
    """All ranks stopped after the same step; ``code`` is the exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(f"exit {code}")
        self.code = code


def exit_code(signals: Sequence[signal.Signals | None]) -> int:
    """The exit code that the signals of all ranks ask for: a user's Ctrl-C must not cause a restart."""
    return exit_codes.INTERRUPTED if signal.SIGINT in signals else exit_codes.RESUME


def leave_on_signals() -> None:
    """End at once on a signal, until other handlers replace these: there is nothing to save yet.

    Process 1 of a container would not end otherwise: the kernel drops signals that it has no handler for.
    """
    for number in requests():
        signal.signal(number, lambda received, _: os._exit(exit_code([signal.Signals(received)])))


class Preemption:
    """The request to stop that signals make of this process, from ``watch`` on."""

    def __init__(self, note_exit: Callable[[int], object] = lambda code: None) -> None:
        """``note_exit`` is called with the exit code before this process is ended; it must not wait."""
        self.signal: signal.Signals | None = None
        self._note_exit = note_exit
        self._since = 0.0
        self._grace_s: float | None = None  # None before the ranks have met
        self._timer: threading.Timer | None = None
        self._timer_lock = threading.Lock()
        self._parent = os.getppid()
        self._obeyed = False
        self._heard_twice = False  # under another number as well
        self._heard_after = False  # once more, when it was obeyed

    @property
    def requested(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def watch(self) -> Preemption:
        """Take over the signals; to be called from the main thread, once.

        A thread reads them from the interpreter's wake-up pipe: a handler would run on the main thread only,
        and not while it waits inside a collective.
        """
        read, write = os.pipe()
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        numbers = requests()
        for number in numbers:
            signal.signal(number, lambda *_: None)
        threading.Thread(target=self._listen, args=(read, numbers), name="signals", daemon=True).start()
        return self

    def limit(self, grace_s: float) -> None:
        """The ranks have met: force the exit ``grace_s`` seconds after the first signal, also a later one."""
        self._grace_s = grace_s
        if self.requested:
            self._start_timer()

    def done(self) -> None:
        """The request was obeyed: only a second signal still forces an exit."""
        self._obeyed = True
        if self._timer is not None:
            self._timer.cancel()

    def left_s(self, grace_s: float) -> float:
        """Seconds that are left of ``grace_s`` after the first signal; all where only another rank had it."""
        return grace_s - self._age() if self.requested else grace_s

    def _listen(self, pipe: int, numbers: Sequence[signal.Signals]) -> None:
        while True:
            for number in os.read(pipe, 64):
                if number in numbers:
                    self._receive(signal.Signals(number))

    def _receive(self, number: signal.Signals) -> None:
        if self.signal is None:
            self._since = time.monotonic()
            self.signal = number
            self._start_timer()
        elif number == signal.SIGHUP:
            pass  # of a terminal that is closed meanwhile
        elif self._parent != os.getppid():
            self._parent = os.getppid()  # the kernel's signal that the launcher has ended counts too
        elif number != self.signal and not self._heard_twice and self._age() < _PASSED_ON_S:
            self._heard_twice = True
        elif self._age() <= SAME_REQUEST_S:
            pass
        elif self._obeyed and not self._heard_after:
            self._heard_after = True
        else:
            self._end(f"a second signal, {number.name}")

    def _age(self) -> float:
        """Seconds since the first signal."""
        return time.monotonic() - self._since

    def _start_timer(self) -> None:
        with self._timer_lock:  # the ranks may meet while a signal comes
            if self._timer is not None:
                self._timer.cancel()
            limit_s, text = _MEET_S, f"the ranks have not met within {_MEET_S:g} seconds of a signal"
            if self._grace_s is not None:
                limit_s = self._grace_s
                text = f"no whole step and checkpoint within faults.grace_s={limit_s:g} seconds"
            self._timer = threading.Timer(max(0.0, limit_s - self._age()), self._end, [text])
            self._timer.daemon = True
            self._timer.start()

    def _end(self, why: str) -> NoReturn:
        # os.write and _exit: the main thread may hold any lock, and may hang where no exception reaches it.
        what = "the checkpoint is saved" if self._obeyed else "without a checkpoint of this step"
        text = f"ppar-dist: {why}: ends now, {what}"
        code = exit_code([self.signal])
        try:
            with contextlib.suppress(OSError):  # the terminal may be closed, or the launcher's pipe
                os.write(2, f"{text}\n".encode())
            to_job_log(text)
            self._note_exit(code)
        finally:
            os._exit(code)

"""Processes that run at the same time and are asked together to save and end."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable


class Children:
    """The training processes that run now."""

    def __init__(self) -> None:
        self._lock, self._running, self._is_over = threading.Lock(), set[subprocess.Popen[bytes]](), False

    def wait(self, start: Callable[[], subprocess.Popen[bytes]]) -> tuple[int, float]:
        """Start a process and wait: its exit code, and the CPU seconds of it and its own children.

        Raises:
            InterruptedError: ``end`` was called before.
        """
        with self._lock:
            if self._is_over:
                raise InterruptedError("interrupted before it began")
            process = start()
            self._running.add(process)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and keeps its number
        with self._lock:
            _, status, usage = os.wait4(process.pid, 0)
            self._running.discard(process)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_utime + usage.ru_stime

    def end(self) -> None:
        """Ask those that run to save and end, and start no more; a second call asks nobody again."""
        with self._lock:
            running = () if self._is_over else tuple(self._running)
            self._is_over = True
            for process in running:
                os.kill(process.pid, signal.SIGTERM)  # not `terminate`, which takes the usage from `wait4`

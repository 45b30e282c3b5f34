"""Programs on a real pseudo-terminal, seen through a terminal emulator (pyte)."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

import pyte

from tests.ranks import TIMEOUT_S, rank_environment


class Terminal:
    """A terminal of ``lines`` × ``columns`` on which ``command`` runs."""

    def __init__(self, command: Sequence[str], lines: int, columns: int, **environment: str) -> None:
        self.screen = pyte.HistoryScreen(columns, lines, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self.raw = b""  # all that was written
        self.master, self.slave = pty.openpty()
        self.resize(lines, columns)
        self.process = subprocess.Popen(
            command,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env=rank_environment() | {"TERM": "xterm-256color"} | environment,
            start_new_session=True,
        )

    def resize(self, lines: int, columns: int) -> None:
        """As a window manager would."""
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
        self.screen.resize(lines, columns)

    def read(self) -> bool:
        """Show what was written since; False where nothing was."""
        if not select.select([self.master], [], [], 0.05)[0]:
            return False
        data = os.read(self.master, 1 << 16)
        self.raw += data
        self._stream.feed(data)
        return True

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Read until ``condition`` holds."""
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            self.read()
            assert time.monotonic() < deadline, f"no {what}:\n{self.text()}"

    def wait(self) -> int:
        """Read to the end; the exit code."""
        self.wait_for(lambda: self.process.poll() is not None, "end")
        while self.read():
            pass
        return self.process.returncode

    def rows(self) -> list[str]:
        """What the screen shows."""
        return [row.rstrip() for row in self.screen.display]

    def lines(self) -> list[str]:
        """What scrolled off the screen, and what it shows."""
        columns = range(self.screen.columns)
        gone = ["".join(row[x].data for x in columns).rstrip() for row in self.screen.history.top]
        return [*gone, *self.rows()]

    def text(self) -> str:
        """All lines."""
        return "\n".join(self.lines())


@contextmanager
def terminal(
    command: Sequence[str], lines: int = 24, columns: int = 80, **environment: str
) -> Iterator[Terminal]:
    """A terminal whose processes end with the block."""
    shown = Terminal(command, lines, columns, **environment)
    try:
        yield shown
    finally:
        with suppress(ProcessLookupError):
            os.killpg(shown.process.pid, signal.SIGKILL)
        shown.process.wait()
        for descriptor in (shown.master, shown.slave):
            with suppress(OSError):
                os.close(descriptor)

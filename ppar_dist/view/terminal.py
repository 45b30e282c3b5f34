"""Rows at the bottom of a terminal that everything else scrolls past.

A job is many processes on one terminal: ranks, their launcher, libraries that write to stderr themselves.
Views that are redrawn at the cursor (rich.live, tqdm) lose or tear the lines that another process
wrote in between. So the rows are outside the terminal's scrolling region, as those of apt do, and each
drawing is a single write that leaves the cursor where it was.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import select
import threading
from collections.abc import Mapping, Sequence
from typing import TextIO

_SAVE, _BACK = "\x1b7", "\x1b8"  # the cursor
_WHOLE = f"{_SAVE}\x1b[r{_BACK}"  # all rows scroll again
_BELOW = "\x1b[J"  # clears what is behind the cursor
_LEAST_LINES, _LEAST_COLUMNS = 8, 20  # of a terminal worth drawing on
_PATIENCE_S = 0.2
_PLAIN = str.maketrans("━─·→…–", "#.|>~-")


class Footer:
    """Some rows at the bottom of the terminal behind ``stream``, given back when this process ends."""

    def __init__(self, stream: TextIO) -> None:
        """Nothing is drawn yet."""
        self._fd, self._encoding = stream.fileno(), stream.encoding or "ascii"
        self._owner, self._closed = os.getpid(), False
        self._lock = threading.Lock()
        self._reserved = (0, 0, 0)  # rows of the footer, lines and columns of the terminal
        self._last: list[str] = []
        _open.append(self)
        atexit.register(self.close)

    def size(self) -> tuple[int, int]:
        """Lines and columns of the terminal, as they are now; (0, 0) where it was closed."""
        try:
            size = os.get_terminal_size(self._fd)
        except OSError:
            return 0, 0
        return size.lines, size.columns

    def draw(self, rows: Sequence[str]) -> None:
        """Show ``rows``; on a terminal too small for them the last are left out.

        Raises:
            OSError: the terminal was closed.
        """
        lines, columns = self.size()
        with self._lock:
            if self._closed or lines < _LEAST_LINES or columns < _LEAST_COLUMNS:
                self._release()
                return
            before = self._reserved[0] if self._reserved[1:] == (lines, columns) else 0
            count = min(max(len(rows), before), lines // 2)
            wanted = (count, lines, columns)
            shown = [*rows[:count], *[""] * (count - len(rows))]
            if (wanted, shown) == (self._reserved, self._last):
                return
            text = "" if wanted == self._reserved else _reserve(count, lines)
            if self._write(text + _paint(shown, lines)):
                self._reserved, self._last = wanted, shown

    def close(self) -> None:
        """Give the rows back for good; waits for nothing, and twice does no harm."""
        if self._owner != os.getpid() or not self._lock.acquire(timeout=_PATIENCE_S):
            return
        try:
            self._closed = True
            with contextlib.suppress(OSError):
                self._release()
        finally:
            self._lock.release()

    def _release(self) -> None:
        count, lines, _ = self._reserved
        if count and self._write(f"{_WHOLE}{_SAVE}\x1b[{lines - count + 1};1H{_BELOW}{_BACK}"):
            self._reserved, self._last = (0, 0, 0), []

    def _write(self, text: str) -> bool:
        """One write, if the terminal takes it now: one that was stopped (Ctrl-S) must not stop the run."""
        if not select.select([], [self._fd], [], 0)[1]:
            return False
        try:
            text.encode(self._encoding)
        except UnicodeEncodeError:
            text = text.translate(_PLAIN)
        os.write(self._fd, text.encode(self._encoding, errors="replace"))
        return True


_open: list[Footer] = []  # of this process


def close_all() -> None:
    """Close the footers of this process: to be called before an exit that runs nothing of Python's."""
    for footer in _open:
        footer.close()


def can_draw(stream: TextIO | None, environment: Mapping[str, str] | None = None) -> bool:
    """Whether ``stream`` is a terminal that knows how to move its cursor."""
    kind = (os.environ if environment is None else environment).get("TERM", "dumb")
    try:
        return stream is not None and stream.isatty() and kind not in ("dumb", "unknown", "")
    except ValueError:  # closed
        return False


def has_colour(environment: Mapping[str, str] | None = None) -> bool:
    """Whether the user wants colours and weights of letters (``NO_COLOR``, see no-color.org)."""
    return not (os.environ if environment is None else environment).get("NO_COLOR")


def give_back(stream: TextIO | None) -> None:
    """Make a terminal whole again that a process may have left without closing its footer, as a kill does."""
    if can_draw(stream):
        assert stream is not None, "no terminal can be drawn on without a stream"
        with contextlib.suppress(OSError):
            if select.select([], [stream.fileno()], [], 0)[1]:
                os.write(stream.fileno(), (_WHOLE + _BELOW).encode("ascii"))


def _reserve(count: int, lines: int) -> str:
    """Take ``count`` rows at the bottom; what is there scrolls up."""
    return f"{_WHOLE}{_BELOW}" + "\n" * count + f"\x1b[{count}A{_SAVE}\x1b[1;{lines - count}r{_BACK}"


def _paint(rows: Sequence[str], lines: int) -> str:
    """The rows, each cut off at the edge rather than wrapped."""
    first = lines - len(rows) + 1
    drawn = (f"\x1b[{first + i};1H\x1b[0m\x1b[2K{row}" for i, row in enumerate(rows))
    return f"{_SAVE}\x1b[?7l{''.join(drawn)}\x1b[0m\x1b[?7h{_BACK}"

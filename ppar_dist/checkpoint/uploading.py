"""Checkpoints copied to object storage by a thread of its own, off the path of steps and of saves."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ppar_dist.checkpoint.layout import CheckpointError, step_of
from ppar_dist.checkpoint.locking import reading
from ppar_dist.text import one_line

_LOOK_S = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Uploaded:
    """How a copy ended.

    Attributes:
        step: of the checkpoint.
        error: why it was not copied, in one line; None if it was.
        seconds: it took, further attempts included.
        bytes: that were sent.
        is_earlier: a newer one was there already.
    """

    step: int
    error: str | None
    seconds: float
    bytes: int
    is_earlier: bool = False


class Destination(Protocol):
    """Where checkpoints are copied to. Methods raise whatever kept them from it."""

    def copy(self, folder: Path) -> int:
        """Copy the newest checkpoint; returns the bytes sent."""

    def lacking(self, folder: Path) -> Sequence[Path]:
        """Checkpoints before ``folder`` that are kept and not there, the newest first."""

    def add(self, folder: Path) -> int:
        """Copy one of these; returns the bytes sent."""


class Uploader:
    """Copies one checkpoint at a time: of those that wait, the newest; when none waits, earlier ones.

    A checkpoint that waited while newer ones came is not copied in its turn. Once the newest is there, those
    that are kept and lacking follow.
    """

    def __init__(self) -> None:
        """Nothing runs before the first ``offer``."""
        self._lock = threading.Lock()
        self._pending: tuple[Path, Destination] | None = None
        self._thread: threading.Thread | None = None
        self._outcomes: deque[Uploaded] = deque()

    def offer(self, folder: Path, to: Destination) -> None:
        """Have a published checkpoint copied, and then the earlier ones that are lacking; any thread may."""
        with self._lock:
            self._pending = folder, to
            if self._thread is None or not self._thread.is_alive():
                # A daemon: storage that hangs must not keep the process from ending.
                self._thread = threading.Thread(target=self._work, name="checkpoint-upload", daemon=True)
                self._thread.start()

    def poll(self) -> Uploaded | None:
        """The oldest outcome not yet given out, without waiting; None if there is none."""
        return self._outcomes.popleft() if self._outcomes else None

    def wait(self, alive: Callable[[], object] = lambda: None, longest_s: float | None = None) -> None:
        """Return when nothing is copied or waits, or after ``longest_s``; ``alive`` is called meanwhile."""
        began = time.monotonic()
        while (thread := self._thread) is not None and thread.is_alive():
            if longest_s is not None and time.monotonic() - began > longest_s:
                return
            alive()
            thread.join(_LOOK_S)

    def _work(self) -> None:
        while True:
            with self._lock:
                if self._pending is None:
                    self._thread = None
                    return
                (folder, to), self._pending = self._pending, None
            _, outcome = _copied(folder, to.copy)
            self._outcomes.append(outcome)
            if outcome.error is None:
                self._catch_up(folder, to)

    def _catch_up(self, newest: Path, to: Destination) -> None:
        """Copy the earlier ones that are lacking, until a newer one waits or storage fails."""
        began = time.monotonic()
        try:
            lacking = to.lacking(newest)
        except Exception as error:
            step, seconds = step_of(newest) or 0, time.monotonic() - began
            self._outcomes.append(Uploaded(step, one_line(error), seconds, 0, is_earlier=True))
            return
        for folder in lacking:
            if self._pending is not None:  # once it is there, this goes on
                return
            failure, outcome = _copied(folder, to.add, is_earlier=True)
            if failure is not None and not folder.exists():  # no longer kept
                continue
            self._outcomes.append(outcome)
            if failure is not None and not isinstance(failure, CheckpointError):
                return


def _copied(
    folder: Path, copy: Callable[[Path], int], is_earlier: bool = False
) -> tuple[Exception | None, Uploaded]:
    began, step = time.monotonic(), step_of(folder) or 0
    try:
        with reading(folder):  # else retention could delete it meanwhile
            sent = copy(folder)
    except Exception as error:  # whatever it is, training continues
        return error, Uploaded(step, one_line(error), time.monotonic() - began, 0, is_earlier)
    return None, Uploaded(step, None, time.monotonic() - began, sent, is_earlier)

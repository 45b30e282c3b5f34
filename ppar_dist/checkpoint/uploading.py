"""Checkpoints copied to object storage by a thread of its own, off the path of steps and of saves."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.checkpoint.layout import step_of
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
    """

    step: int
    error: str | None
    seconds: float
    bytes: int


class Uploader:
    """Copies one checkpoint at a time; of those that wait meanwhile, the newest."""

    def __init__(self) -> None:
        """Nothing runs before the first ``offer``."""
        self._lock = threading.Lock()
        self._pending: tuple[Path, Callable[[Path], int]] | None = None
        self._thread: threading.Thread | None = None
        self._outcomes: deque[Uploaded] = deque()

    def offer(self, folder: Path, copy: Callable[[Path], int]) -> None:
        """Have a published checkpoint copied by ``copy``, which returns the bytes sent; any thread may."""
        with self._lock:
            self._pending = folder, copy
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
                (folder, copy), self._pending = self._pending, None
            self._outcomes.append(_copied(folder, copy))


def _copied(folder: Path, copy: Callable[[Path], int]) -> Uploaded:
    began, step = time.monotonic(), step_of(folder) or 0
    try:
        with reading(folder):  # else retention could delete it meanwhile
            sent = copy(folder)
    except Exception as error:  # whatever it is, training continues
        return Uploaded(step, one_line(error), time.monotonic() - began, 0)
    return Uploaded(step, None, time.monotonic() - began, sent)

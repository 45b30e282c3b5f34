"""Checkpoints written by a thread of their own, while training continues."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.checkpoint.joint import Joint
from ppar_dist.checkpoint.layout import read_manifest
from ppar_dist.checkpoint.publishing import Snapshot, publish, write_part
from ppar_dist.text import one_line

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """How a write ended.

    Attributes:
        step: of the checkpoint.
        folder: where it was published; None if it was not.
        error: why not, in one line; None if it was.
        seconds: the writing took, from beginning to end.
        bytes: size of its files; 0 if it was not published, and on other ranks than 0.
        linked: bytes of them that an earlier checkpoint has too, as the same files.
    """

    step: int
    folder: Path | None
    error: str | None
    seconds: float
    bytes: int
    linked: int = 0


class Writer:
    """Writes one checkpoint, or a rank's part of it, at a time. For one thread."""

    def __init__(self, run: Path, background: bool = True) -> None:
        """Write into ``run``: in a thread of its own, or (``background=False``) in the caller's."""
        self._run, self._background = run, background
        self._thread: threading.Thread | None = None
        self._outcomes: deque[Outcome] = deque()

    def submit(
        self,
        snapshot: Snapshot,
        then: Callable[[Path], object] | None = None,
        joint: Joint | None = None,
    ) -> float:
        """Have a snapshot written, once the write before it has ended: memory holds two at most.

        Args:
            snapshot: its tensors must not change from now on.
            then: called with the published folder where the writing is done, to delete old checkpoints,
                say; what it raises is a warning.
            joint: the ranks that write it together; None: this one alone.

        Returns:
            Seconds this call held its caller.
        """
        began = time.monotonic()
        self._wait()
        if self._background:
            # A daemon: storage that hangs must not keep the process from ending.
            self._thread = threading.Thread(
                target=self._write, args=(snapshot, then, joint), name="checkpoint-writer", daemon=True
            )
            self._thread.start()
        else:
            self._write(snapshot, then, joint)
        return time.monotonic() - began

    @property
    def busy(self) -> bool:
        """Whether a write is under way."""
        return self._thread is not None and self._thread.is_alive()

    def poll(self) -> Outcome | None:
        """The oldest outcome not yet given out, without waiting; None if there is none."""
        return self._outcomes.popleft() if self._outcomes else None

    def finish(self) -> Outcome | None:
        """Wait for the write under way, then as ``poll``: None when all outcomes have been given out."""
        self._wait()
        return self.poll()

    def close(self) -> None:
        """Wait for the write under way; outcomes that were not polled go to the log."""
        while (outcome := self.finish()) is not None:
            if outcome.error is not None:
                log.warning("%s", outcome.error)

    def join(self, seconds: float) -> None:
        """Wait at most so long for the write under way; any thread may."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)

    def _wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _write(self, snapshot: Snapshot, then: Callable[[Path], object] | None, joint: Joint | None) -> None:
        began = time.monotonic()
        try:
            if joint is not None and joint.rank != 0:
                write_part(self._run, snapshot, joint)
                outcome = Outcome(snapshot.step, None, None, time.monotonic() - began, 0)
            else:
                folder = publish(self._run, snapshot, joint)
                manifest = read_manifest(folder)
                linked = sum(each["bytes"] for each in manifest["files"].values() if "linked" in each)
                seconds = time.monotonic() - began
                outcome = Outcome(snapshot.step, folder, None, seconds, int(manifest["bytes"]), linked)
        except Exception as error:  # whatever it is, the training thread must know
            outcome = Outcome(snapshot.step, None, one_line(error), time.monotonic() - began, 0)
        try:
            if then is not None and outcome.folder is not None:
                then(outcome.folder)
        except Exception as error:
            log.warning("after checkpoint %s: %s: %s", outcome.step, type(error).__name__, error)
        self._outcomes.append(outcome)

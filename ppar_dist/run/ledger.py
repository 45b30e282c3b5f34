"""The sample ledger: which samples each rank trained on, step by step, and the proof that none is missing.

::

    <run>/ledger/
      attempt-00003/            a start of the job, or a rollback within one
        rank-00001.jsonl        first line: where the attempt began; then a line per step of this rank

A record is on its way to the disk before the step's result can reach a checkpoint. When a run is killed, the
steps after its last checkpoint are done again by the next attempt; the history is therefore, of every
attempt, the steps up to where the next one began.

Storage that fails does not end the run: records wait in memory, in their order, and are written when it works
again. What was still waiting when the process ended, or had been written to a file that somebody deleted, is
missing then, and the audit says so of every step that this leaves without proof.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ppar_dist.run.state import TrainState

_PREFIX = "attempt-"


log = logging.getLogger(__name__)


def next_attempt(run: Path) -> int:
    """A number larger than those of all attempts that left a ledger."""
    return 1 + max((number for number, _ in attempt_folders(run)), default=0)


class Ledger:
    """One rank's ledger of one attempt."""

    def __init__(self, run: Path, attempt: int, rank: int, world_size: int, state: TrainState) -> None:
        """Begin an attempt that goes on from ``state``."""
        self._path = run / "ledger" / f"{_PREFIX}{attempt:05d}" / f"rank-{rank:05d}.jsonl"
        start = {"step": state.step, "position": state.samples_seen, "stepped_over": state.stepped_over}
        self._first = _line({"rank": rank, "world_size": world_size, **start})
        self._file: int | None = None
        self._waiting, self._written = b"", 0  # bytes to come, and those that are in the file
        self._failed = False
        self._flush()

    def write(self, step: int, positions: Sequence[int], samples: Sequence[str]) -> None:
        """Note the samples of this rank's part of ``step``, as ``domain/key``, in the order of positions."""
        self._waiting += _line({"step": step, "positions": list(positions), "samples": list(samples)})
        self._flush()

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._flush()
        if self._failed:
            log.warning("%s lacks its last %d bytes: no proof of these steps", self._path, len(self._waiting))
        self._close()

    def _flush(self) -> None:
        """Write what waits. A failure is said once, and again when writing works again."""
        try:
            self._open()
            self._append()
        except OSError as error:
            if not self._failed:
                log.warning("%s cannot be written (%s): records wait", self._path, error.strerror)
            self._failed = True
            return
        if self._failed:
            log.warning("%s can be written again: nothing was lost", self._path)
        self._failed = False

    def _open(self) -> None:
        """Make the file, also anew where somebody deleted it: the audit will miss what it held."""
        if self._file is not None and os.fstat(self._file).st_nlink == 0:
            log.warning("%s has gone and is made anew; the steps it held are without proof", self._path)
            self._close()
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o666)
            self._waiting, self._written = self._first + self._waiting, 0

    def _append(self) -> None:
        """At the place up to which all lines are whole: what a failure cut off is written over."""
        assert self._file is not None
        done = 0
        while done < len(self._waiting):
            done += os.pwrite(self._file, self._waiting[done:], self._written + done)
        self._waiting, self._written = b"", self._written + done

    def _close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):  # of storage that fails, which has been said
                os.close(file)


def _line(record: dict[str, Any]) -> bytes:
    return (json.dumps(record) + "\n").encode()


def attempt_folders(run: Path) -> list[tuple[int, Path]]:
    """Number and folder of each attempt that left a ledger, rising."""
    folders = (run / "ledger").glob(f"{_PREFIX}*")
    numbered = [(folder.name.removeprefix(_PREFIX), folder) for folder in folders]
    return sorted((int(number), folder) for number, folder in numbered if number.isdigit())

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
missing, and the audit names every step that this leaves without proof.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from ppar_dist.files.jsonl import JsonLines
from ppar_dist.run import paths
from ppar_dist.run.state import TrainState

log = logging.getLogger(__name__)


class Ledger:
    """One rank's ledger of one attempt."""

    def __init__(self, run: Path, attempt: int, rank: int, world_size: int, state: TrainState) -> None:
        """Begin an attempt that continues from ``state``."""
        start = {"step": state.step, "position": state.samples_seen, "stepped_over": state.stepped_over}
        path = paths.rank_file(paths.attempt(run, attempt), rank)
        self._file = JsonLines(path, {"rank": rank, "world_size": world_size, **start}, waits=True)
        self._file.flush()

    def write(self, step: int, positions: Sequence[int], samples: Sequence[str]) -> None:
        """Note the samples of this rank's part of ``step``, as ``domain/key``, in the order of positions."""
        self._file.write({"step": step, "positions": list(positions), "samples": list(samples)})

    def close(self) -> None:
        """Write what waits, and close the file."""
        left = self._file.close()
        if left:
            log.warning("%s lacks its last %d bytes: no proof of these steps", self._file.path, left)


def next_attempt(run: Path) -> int:
    """A number larger than those of all attempts that left a ledger."""
    return 1 + max((number for number, _ in attempt_folders(run)), default=0)


def attempt_folders(run: Path) -> list[tuple[int, Path]]:
    """Number and folder of each attempt that left a ledger, rising."""
    folders = paths.ledger(run).glob(f"{paths.ATTEMPT}*")
    numbered = [(folder.name.removeprefix(paths.ATTEMPT), folder) for folder in folders]
    return sorted((int(number), folder) for number, folder in numbered if number.isdigit())

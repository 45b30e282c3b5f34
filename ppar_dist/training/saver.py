"""When a run's checkpoints are written, and what becomes of them.

The ranks gather a copy of their state in the memory of rank 0, which writes it, by default behind the
training: one write at most is under way.
"""

from __future__ import annotations

import time

from ppar_dist.checkpoint import CheckpointError, Outcome, Writer
from ppar_dist.distributed.world import World
from ppar_dist.training.recorder import RunLog
from ppar_dist.training.runfolder import RunFolder, Training
from ppar_dist.watchdog import Watchdog

_ATTEMPTS = 2  # at a checkpoint that must not be missing


class Saver:
    """The checkpoints of a run, as one rank sees them."""

    def __init__(self, folder: RunFolder, log: RunLog, world: World, watch: Watchdog) -> None:
        self._folder, self._log, self._world, self._watch = folder, log, world, watch
        background = folder.plan.config.checkpoint.background
        self._writer = Writer(folder.path, background) if world.is_main else None
        if self._writer is not None:
            watch.before_end(self._writer.join)
        self._step = folder.resumed_step  # of the newest checkpoint, or of the one under way
        self._error: str | None = None  # what kept that one from being written
        self._stall = 0.0  # seconds that it held up training

    def save(self, training: Training) -> None:
        """Have a checkpoint of the present step written, unless that was done. Collective.

        A failure is logged, and training goes on.
        """
        step = training.state.step
        if self._step == step:
            return
        self._watch.phase("save", step)
        self.wait()  # before the copy is made: memory holds one at a time
        began = time.monotonic()
        snapshot = self._folder.snapshot(training)
        self._step = step
        if self._writer is not None and snapshot is not None:
            if self._folder.restore_if_gone():
                self._log.rewind(training.state)
            self._error = None
            self._writer.submit(snapshot, self._folder.retention(training.state))
            self._stall = time.monotonic() - began

    def finish(self, training: Training) -> None:
        """Return when a checkpoint of the present step is published. Collective.

        Raises:
            CheckpointError: on every rank alike, when that failed twice.
        """
        for _ in range(_ATTEMPTS):
            self.save(training)
            self._watch.phase("save", training.state.step)
            self.wait()
            error = self._world.broadcast(self._error)
            if error is None:
                return
            self._step = None
        raise CheckpointError(error)

    def log_finished(self) -> None:
        """Log the end of a write in the background, if it has ended."""
        if self._writer is not None:
            self._note(self._writer.poll())

    def wait(self) -> None:
        """Wait for the write under way."""
        if self._writer is not None:
            began = time.monotonic()
            outcome = self._writer.finish()
            self._stall += time.monotonic() - began
            self._note(outcome)

    def rewrite_after_rollback(self, training: Training) -> None:
        """After a rollback: delete the checkpoints of later steps and write this state's anew. Collective.

        In this order: a run killed in between goes on from where it rolled back to, not from a later
        checkpoint that may be spoiled.

        Raises:
            CheckpointError: on every rank alike, when one of the two failed.
        """
        step = training.state.step
        problem = self._world.broadcast(self._folder.delete_after(step) if self._world.is_main else None)
        if problem:
            raise CheckpointError(problem)
        self.rewrite(training)

    def rewrite(self, training: Training) -> None:
        """Write the checkpoint of the present step anew, because its state has changed. Collective.

        Raises:
            CheckpointError: on every rank alike, when that failed twice.
        """
        self._step = None
        self.finish(training)

    def close(self) -> None:
        """Wait for the write under way and end the thread."""
        if self._writer is not None:
            self._writer.close()

    def _note(self, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._error = outcome.error
            self._log.checkpoint(outcome, self._stall)

"""When a run's checkpoints are written, which of them are kept, and how their writing ended.

Each rank writes a copy of its part of the moments, rank 0 all else too, by default while training continues:
one write at most is under way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Set
from pathlib import Path

from ppar_dist import checkpoint
from ppar_dist.checkpoint import CheckpointError, CollectiveSave, JointSave, Outcome, Writer
from ppar_dist.checkpoint.owner import CLOSE_S
from ppar_dist.distributed.board import open_board
from ppar_dist.distributed.world import World
from ppar_dist.processes.signals import Preemption
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.state import TrainState
from ppar_dist.storage.failures import StorageUnavailable
from ppar_dist.training.learner import Learner
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.recorder import Recorder
from ppar_dist.training.remote_copies import RemoteCopies
from ppar_dist.training.resume import complete_steps, resume
from ppar_dist.training.snapshot import snapshot
from ppar_dist.watchdog import Watchdog

_ATTEMPTS = 2  # at a checkpoint that must not be missing


class Checkpointing:
    """The checkpoints of a run, as one rank sees them."""

    def __init__(
        self,
        plan: RunPlan,
        world: World,
        claim: RunClaim,
        log: Recorder,
        watch: Watchdog,
        resumed_from: Path | None,
    ) -> None:
        """``resumed_from`` is the checkpoint that the run has resumed from, if any."""
        self._plan, self._world, self._claim, self._log, self._watch = plan, world, claim, log, watch
        self._writer = Writer(claim.path, plan.config.checkpoint.background)
        watch.before_end(self._writer.join)
        self._board = open_board(world) if world.world_size > 1 else None
        if self._board is not None:
            self._board.read(())  # connects: once the store is gone, that would be tried for long
        self._copies = RemoteCopies(claim.mirror, log)
        self._saves = 0  # since the start of the job
        self._resumed_from = resumed_from
        self._newest = resumed_from  # holds what stays the same all through the run
        # Of the newest checkpoint, or of the one under way.
        self._step = None if resumed_from is None else checkpoint.step_of(resumed_from)
        self._error: str | None = None  # what kept that one from being written
        self._stall = 0.0  # seconds for which it blocked training

    def save(self, learner: Learner, together: bool = False) -> None:
        """Have a checkpoint of the present step written, unless that was done. Collective.

        A failure is logged, and training continues. ``together``: the ranks write it now and wait for each
        other, without the store.
        """
        step = learner.state.step
        if self._step == step:
            return
        self._watch.phase("save", step)
        self.wait()  # before the copy is made: memory holds one at a time
        self._log.mark()  # a restart comes back to here
        began = time.monotonic()
        copy = snapshot(learner, self._plan, self._world, self._newest)
        self._step, self._error = step, None
        if self._world.is_main and self._claim.restore_if_gone():
            self._log.rewind(learner.state)
        retain = self._retention(learner.state) if self._world.is_main else None
        if together and self._board is not None:
            writer = Writer(self._claim.path, background=False)
            writer.submit(copy, retain, CollectiveSave(self._world))
            self._note(writer.finish())
        else:
            self._writer.submit(copy, retain, self._joint_save())
        self._stall = time.monotonic() - began

    def finish(self, learner: Learner) -> None:
        """Return when a checkpoint of the present step is published. Collective.

        Raises:
            CheckpointError: on every rank alike, when that failed twice.
        """
        for attempt in range(_ATTEMPTS):
            self.save(learner, together=attempt > 0)  # the store may have gone with the launcher
            self._watch.phase("save", learner.state.step)
            self.wait()
            error = self._world.broadcast(self._error)
            if error is None:
                return
            self._step = None
        raise CheckpointError(error)

    def end(self, learner: Learner) -> None:
        """As ``finish``, and return when the remote has it, too. Collective.

        Raises:
            CheckpointError: as ``finish``.
            StorageUnavailable: on every rank alike, when the remote did not take it in two attempts.
        """
        self.finish(learner)
        if behind := self._world.on_main(lambda: self._finish_copies(learner)):
            raise StorageUnavailable(behind)

    def leave(self, learner: Learner, preemption: Preemption) -> None:
        """As ``finish``, say that the request to stop is obeyed, and wait a bounded time for the remote.

        Collective.

        Raises:
            CheckpointError: as ``finish``.
        """
        self.finish(learner)
        preemption.done()  # from here on nothing is lost when this process is ended
        grace_s = self._plan.config.faults.grace_s
        left_s = min(self._world.gather(preemption.left_s(grace_s)))  # the first one asked is ended first
        longest_s = max(0.0, min(grace_s / 2, left_s - 2 * CLOSE_S))
        if behind := self._world.on_main(lambda: self._finish_copies(learner, longest_s)):
            self._log.warn(behind)

    def log_finished(self) -> None:
        """Log the end of a write in the background, if it has ended."""
        self._note(self._writer.poll())
        self._copies.note()

    def wait(self) -> None:
        """Wait for the write under way."""
        began = time.monotonic()
        outcome = self._writer.finish()
        self._stall += time.monotonic() - began
        self._note(outcome)

    def go_back(self, learner: Learner, before: int) -> bool:
        """Restore the newest whole checkpoint up to step ``before``; False if none is whole. Collective.

        Raises:
            UserError: as ``resume``.
        """
        self.wait()
        found = resume(learner, self._plan, self._world, self._claim, before)
        self._resumed_from = self._newest = found or self._resumed_from
        return found is not None

    def rewrite_after_rollback(self, learner: Learner) -> None:
        """After a rollback: delete the checkpoints of later steps and write this state's again. Collective.

        In this order: a run killed in between resumes from where it rolled back to, not from a later
        checkpoint that may be spoiled.

        Raises:
            CheckpointError: on every rank alike, when one of the two failed.
        """
        step = learner.state.step

        def delete() -> str | None:
            self._copies.roll_back_to(step)
            return _delete_after(self._claim.path, step)

        problem = self._world.on_main(delete)
        if problem:
            raise CheckpointError(problem)
        self.rewrite(learner)

    def rewrite(self, learner: Learner) -> None:
        """Write the checkpoint of the present step again, because its state has changed. Collective.

        Raises:
            CheckpointError: on every rank alike, when that failed twice.
        """
        self._step = None
        self._copies.forget()
        self.finish(learner)

    def close(self) -> None:
        """Wait for the write under way and end the thread."""
        self._writer.close()
        self._copies.note()

    def _joint_save(self) -> JointSave | None:
        """What ties the ranks' writes together; None for a rank alone."""
        self._saves += 1
        if self._board is None:
            return None
        limit_s = self._plan.config.faults.stall_s
        return JointSave(self._board, self._world.rank, self._world.world_size, self._saves, limit_s)

    def catch_up(self, state: TrainState) -> None:
        """After a resume: have the remote sent what the job before could not send it."""
        if self._resumed_from is not None and self._world.is_main:
            self._copies.offer(self._resumed_from, self._kept(state))

    def _kept(self, state: TrainState) -> Callable[[list[int]], Set[int]]:
        """Which of the steps of checkpoints stay.

        The one that the run would roll back to now does: those of a streak of non-finite steps are useless.
        """
        keep, limit = self._plan.config.checkpoint, state.rollback_limit()
        best = {state.best_step} if keep.keep_best and state.best_step is not None else set()
        aside = {checkpoint.step_of(self._resumed_from) or 0} if self._resumed_from is not None else set()

        def kept(steps: list[int]) -> Set[int]:
            safe = [step for step in steps if step <= limit][-1:]
            every = [step for step in steps if keep.keep_every and step % keep.keep_every == 0]
            return {*steps[-keep.keep_last :], *every, *safe} | best | aside

        return kept

    def _retention(self, state: TrainState) -> Callable[[Path], object]:
        """What deletes the checkpoints no longer kept, to be called when one more is published."""
        run, keep, limit = self._claim.path, self._plan.config.checkpoint, state.rollback_limit()
        best = {state.best_step} if keep.keep_best and state.best_step is not None else set()
        in_use = {self._resumed_from} if self._resumed_from is not None else set()
        kept = self._kept(state)

        def retain(folder: Path) -> None:
            self._copies.offer(folder, kept)
            safe = [step for step in complete_steps(run) if step <= limit][-1:]
            checkpoint.retain(run, keep.keep_last, keep.keep_every, best | set(safe), in_use)

        return retain

    def _finish_copies(self, learner: Learner, longest_s: float | None = None) -> str | None:
        """As ``RemoteCopies.finish``, of the newest checkpoint. On rank 0."""
        if self._newest is None:
            return None
        return self._copies.finish(self._newest, self._kept(learner.state), self._watch.alive, longest_s)

    def _note(self, outcome: Outcome | None) -> None:
        if outcome is not None and self._world.is_main:  # it says what became of the others' parts
            self._error = outcome.error
            self._newest = outcome.folder or self._newest
            self._log.checkpoint(outcome, self._stall)


def _delete_after(run: Path, step: int) -> str | None:
    """Delete the checkpoints of later steps than ``step``: the run has rolled back to before them.

    Returns:
        Why one of them could not even be renamed: a restart would resume from it. None if all are deleted.
    """
    try:
        for folder in checkpoint.list_candidates(run):
            if (checkpoint.step_of(folder) or 0) > step:
                checkpoint.withdraw(folder)
    except OSError as error:
        return f"{folder.name}, which the run has rolled back behind, cannot be deleted: {error.strerror}"
    return None

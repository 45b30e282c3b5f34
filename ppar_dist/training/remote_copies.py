"""The copies of a run's checkpoints on object storage, as rank 0 has them made and hears of them."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path

from ppar_dist import checkpoint
from ppar_dist.checkpoint import Uploader
from ppar_dist.run.mirror import Mirror
from ppar_dist.training.recorder import Recorder


class RemoteCopies:
    """Copies to ``checkpoint.remote``; without one, nothing happens."""

    def __init__(self, mirror: Mirror | None, log: Recorder) -> None:
        """``mirror`` is claimed."""
        self._mirror, self._log, self._uploader = mirror, log, Uploader()
        self._step: int | None = None  # the newest that is there, as far as this job knows
        self._problem: str | None = None  # since the newest arrived, or of that one

    def offer(self, folder: Path, keep: Callable[[list[int]], Set[int]]) -> None:
        """Have the newest checkpoint copied, and then those that are kept and lacking. Any thread may."""
        if self._mirror is not None:
            self._uploader.offer(folder, self._mirror.destination(keep))

    def roll_back_to(self, step: int) -> None:
        """No checkpoint of a later step counts from now on."""
        if self._mirror is not None:
            self._mirror.roll_back_to(step)

    def forget(self) -> None:
        """The newest checkpoint is written again: what is there is not that one."""
        self._step = None

    def finish(
        self,
        newest: Path,
        keep: Callable[[list[int]], Set[int]],
        alive: Callable[[], object],
        longest_s: float | None = None,
    ) -> str | None:
        """Wait for the copies; without ``longest_s`` as long as it takes, and failed ones are tried again.

        Returns:
            What the remote lacks; None where it has all.
        """
        if self._mirror is None:
            return None
        step = checkpoint.step_of(newest)
        self._uploader.wait(alive, longest_s)
        self.note()
        if longest_s is None and (self._step != step or self._problem is not None):
            self.offer(newest, keep)
            self._uploader.wait(alive)
            self.note()
        if self._step != step:
            return (
                f"{self._mirror.place} does not have the last checkpoint, {newest.name}; run the same "
                "command again: it sends it"
            )
        if self._problem is not None:
            return (
                f"{self._mirror.place} does not have all checkpoints that are kept ({self._problem}); run "
                "the same command again: it sends them"
            )
        return None

    def note(self) -> None:
        """Log the copies that have ended."""
        while (outcome := self._uploader.poll()) is not None:
            if outcome.error is not None:
                self._problem = outcome.error
            elif not outcome.is_earlier:  # after which all that is lacking is tried again
                self._step, self._problem = outcome.step, None
            self._log.uploaded(outcome, self._step)

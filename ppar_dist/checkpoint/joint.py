"""What ranks tell each other while they write one checkpoint together.

Rank 0 makes the folder and says so; the others write their files into it and name them; rank 0 lists all in
the manifest and publishes. ``JointSave`` is for threads beside the training, which is at other steps in other
ranks meanwhile: it needs no collective, but the store. ``CollectiveSave`` is for training threads that wait
for the checkpoint: it needs no store, which may have gone with the launcher.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ppar_dist.checkpoint.layout import CheckpointError

if TYPE_CHECKING:
    from ppar_dist.distributed.board import Board  # they load torch, and who only reads a run needs none
    from ppar_dist.distributed.world import World

Files = dict[str, dict[str, Any]]  # name to bytes and sha256

_OPEN, _DONE, _FAILED = "open", "done", "failed"
_POLLS_S = (0.02, 1.0)  # the first and the longest pause between two looks at the board
_VISIBLE_S = 60.0  # within which a folder on shared storage appears on another host


@dataclass(frozen=True)
class JointSave:
    """One checkpoint that several ranks write.

    Attributes:
        board: of these saves alone.
        rank: this one.
        ranks: that write.
        number: of the save since the start of the job, equal on all ranks.
        limit_s: seconds after which a rank is not waited for any longer.
    """

    board: Board
    rank: int
    ranks: int
    number: int
    limit_s: float

    def open(self) -> None:
        """Rank 0: the folder is there."""
        self._post(_OPEN)

    def cancel(self, reason: str) -> None:
        """Rank 0: this checkpoint is not written."""
        with suppress(OSError):  # the others give up by themselves in time
            self._post(_FAILED, reason=reason)

    def collect(self) -> Files:
        """Rank 0: the files of all other ranks, when they are written.

        Raises:
            CheckpointError: a rank could not write its own, or not in time.
        """
        found: dict[int, Files] = {}

        def look() -> bool:
            for rank, said in self._read(range(1, self.ranks)).items():
                if said["state"] == _FAILED:
                    raise CheckpointError(f"rank {rank}: {said['reason']}")
                found[rank] = said["files"]
            return len(found) == self.ranks - 1

        if not self._wait(look):
            late = ", ".join(str(rank) for rank in range(1, self.ranks) if rank not in found)
            raise CheckpointError(f"rank {late} did not write its part in {self.limit_s:g} s")
        return {name: entry for files in found.values() for name, entry in files.items()}

    def wait_until_open(self, folder: Path) -> None:
        """Another rank: return when rank 0 has made ``folder`` and this host sees it.

        Raises:
            CheckpointError: rank 0 has given up, or the folder does not appear in time.
        """
        is_open = False

        def look() -> bool:
            nonlocal is_open
            said = self._read((0,)).get(0)
            if said is not None and said["state"] == _FAILED:
                raise CheckpointError(f"rank 0: {said['reason']}")
            is_open = is_open or said is not None
            return is_open and folder.is_dir()

        if not self._wait(look):
            reason = "run.dir must be on storage that all hosts share" if is_open else "rank 0 made none"
            raise CheckpointError(f"no folder {folder} after {self.limit_s:g} s: {reason}")

    def done(self, files: Files) -> None:
        """Another rank: its files are on storage."""
        self._post(_DONE, files=files)

    def failed(self, reason: str) -> None:
        """Another rank: its files cannot be written."""
        with suppress(OSError):
            self._post(_FAILED, reason=reason)

    def _post(self, state: str, **more: object) -> None:
        self.board.post(json.dumps({"save": self.number, "state": state, **more}))

    def _read(self, ranks: range | tuple[int, ...]) -> dict[int, Mapping[str, Any]]:
        """What ranks have said about this save; of an earlier one, nothing.

        Raises:
            CheckpointError: a rank is at a later save.
        """
        said = {rank: json.loads(text) for rank, text in self.board.read(ranks).items()}
        if ahead := [rank for rank, each in said.items() if each["save"] > self.number]:
            raise CheckpointError(f"rank {ahead[0]} has given up this checkpoint and writes a later one")
        return {rank: each for rank, each in said.items() if each["save"] == self.number}

    def _wait(self, look: Callable[[], bool]) -> bool:
        """Call ``look`` until it is true; False when the time is over."""
        until, pause = time.monotonic() + self.limit_s, _POLLS_S[0]
        while not look():
            if time.monotonic() > until:
                return False
            time.sleep(pause)
            pause = min(2 * pause, _POLLS_S[1])
        return True


class CollectiveSave:
    """One checkpoint that all ranks write while they wait for each other; the verbs are ``JointSave``'s.

    Whatever fails on one rank, all come through one broadcast, and through one gather after it if the folder
    is there.
    """

    def __init__(self, world: World) -> None:
        self.rank, self._world = world.rank, world
        self._is_open = self._has_told = False

    def open(self) -> None:
        """Rank 0: the folder is there."""
        self._is_open = True
        self._world.broadcast("")

    def cancel(self, reason: str) -> None:
        """Rank 0: this checkpoint is not written."""
        if not self._is_open:
            self._world.broadcast(reason)
        elif not self._has_told:
            self._tell(reason, {})

    def collect(self) -> Files:
        """Rank 0: the files of all other ranks.

        Raises:
            CheckpointError: a rank could not write its own.
        """
        files: Files = {}
        for rank, (reason, theirs) in enumerate(self._tell("", {})):
            if reason:
                raise CheckpointError(f"rank {rank}: {reason}")
            files |= theirs
        return files

    def wait_until_open(self, folder: Path) -> None:
        """Another rank: return when rank 0 has made ``folder`` and this host sees it.

        Raises:
            CheckpointError: rank 0 has given up, or the folder does not appear.
        """
        reason = self._world.broadcast(None)
        if reason:
            raise CheckpointError(f"rank 0: {reason}")
        self._is_open = True
        until = time.monotonic() + _VISIBLE_S
        while not folder.is_dir():
            if time.monotonic() > until:
                raise CheckpointError(f"no folder {folder}: run.dir must be on storage that all hosts share")
            time.sleep(_POLLS_S[0])

    def done(self, files: Files) -> None:
        """Another rank: its files are on storage."""
        self._tell("", files)

    def failed(self, reason: str) -> None:
        """Another rank: its files cannot be written."""
        if self._is_open and not self._has_told:
            self._tell(reason, {})

    def _tell(self, reason: str, files: Files) -> list[tuple[str, Files]]:
        self._has_told = True
        return self._world.gather((reason, files))


Joint = JointSave | CollectiveSave

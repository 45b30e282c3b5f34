"""A run's copy on object storage: its checkpoints, and what else a fresh machine needs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Set
from pathlib import Path

from ppar_dist.checkpoint import (
    CheckpointError,
    checkpoint_name,
    find_checkpoint,
    list_checkpoints,
    publish_fetched,
    step_of,
)
from ppar_dist.checkpoint.owner import Ownership
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.config.schema import Config
from ppar_dist.errors import UserError
from ppar_dist.files.durable import make_folder, sync
from ppar_dist.run import paths
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage

_LOOK_S = 0.2
_FOLDERS = ("metrics", "quarantine", "ledger")  # of records

log = logging.getLogger(__name__)


class Mirror:
    """The copy of one run, as rank 0 keeps it."""

    def __init__(self, run: Path, place: Remote, storage: Storage, silent_s: float) -> None:
        """Nothing is claimed yet; ``silent_s`` as for the run's lock."""
        self.place, self._run, self._storage = place, run, storage
        self._checkpoints = RemoteRun(place, storage)
        self._owner = Ownership(run, place, storage, silent_s)
        self._sent: dict[str, tuple[int, int]] = {}  # size and time of the files that are there
        self._is_swept = False

    def open(self, alive: Callable[[], object]) -> None:
        """Claim the place, and take what it has newer than ``run.dir``, whose lock is held.

        ``alive`` is called meanwhile.

        Raises:
            UserError: another run or job has the place, or none of its checkpoints is whole.
            OSError: storage or disk fails.
        """
        _patiently(self._open, alive)

    def _open(self) -> None:
        self._owner.claim(bool(list_checkpoints(self._run)))
        limit = self._owner.limit
        steps = [step for step in self._checkpoints.steps() if limit is None or step <= limit]
        if not steps:
            return
        local = find_checkpoint(self._run)
        have = -1 if local is None else step_of(local) or 0
        passed_over = []
        for step in (each for each in reversed(steps) if each > have):
            problem = self._take(step)
            if problem is None:
                return
            passed_over.append(f"{checkpoint_name(step)}: {problem}")
            log.warning("checkpoint %s in %s is passed over: %s", checkpoint_name(step), self.place, problem)
        if local is None:
            reasons = "; ".join(passed_over[:3])
            raise UserError(
                f"none of the {len(steps)} checkpoints in {self.place} is whole ({reasons}); restore one, or "
                "give another checkpoint.remote and run.dir to start over"
            )

    def _take(self, step: int) -> str | None:
        """Download a checkpoint and the run's records; returns why not, where it is not whole."""
        if problems := self._checkpoints.problems(step):
            return "; ".join(problems)
        try:
            publish_fetched(self._run, step, lambda folder: self._fetch(step, folder))
        except CheckpointError as error:
            return str(error)
        log.info(
            "checkpoint %s is taken from %s, newer than what run.dir has", checkpoint_name(step), self.place
        )
        return None

    def _fetch(self, step: int, folder: Path) -> None:
        self._checkpoints.fetch(step, folder)
        for name in self._remote_files():  # before it is published: a kill in between begins anew
            path = self._run / name
            make_folder(path.parent)
            part = path.with_name(f".{path.name}.fetched")
            self._storage.download(self._at(name), part)
            sync(part)
            part.replace(path)

    def copy(self, folder: Path, keep: Callable[[list[int]], Set[int]]) -> int:
        """Copy a published checkpoint, and delete there what is kept no longer. Returns the bytes sent.

        Raises:
            CheckpointError, OSError, UserError: it is not there; what was there before is whole.
        """
        self._owner.check()
        sent = self._send_files()
        step = step_of(folder) or 0
        sent += self._checkpoints.publish(folder, self._owner.check)
        limit = self._owner.limit
        if limit is not None and step > limit:
            self._checkpoints.withdraw(step)
            raise CheckpointError("the run has rolled back behind it")
        if limit is not None:
            self._owner.note(None)  # publishing has deleted those of later steps
        self._owner.note_safe(step)
        try:
            self._checkpoints.retain(keep, self._owner.check)
        except (OSError, UserError, CheckpointError) as error:
            log.warning("old checkpoints in %s could not be deleted, tried again: %s", self.place, error)
        return sent

    def roll_back_to(self, step: int) -> None:
        """No checkpoint of a later step counts from now on, also where it cannot be deleted at once."""
        self._owner.note(step)

    def close(self) -> None:
        """Leave word that this job has ended."""
        self._owner.close()

    def _send_files(self) -> int:
        """Send the records that have changed."""
        sent, names = 0, list(self._local_files())
        if not self._is_swept:  # what an attempt that came to no checkpoint has left
            for name in self._remote_files():
                if name not in names:
                    self._storage.remove(self._at(name))
            self._is_swept = True
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # somebody deleted it
                found = (self._run / name).stat()
                state = found.st_size, found.st_mtime_ns
                if self._sent.get(name) != state:
                    self._storage.upload(self._run / name, self._at(name))
                    self._sent[name], sent = state, sent + found.st_size
        return sent

    def _local_files(self) -> Iterator[str]:
        yield from (path.name for path in _single_files(self._run) if path.is_file())
        for folder in _FOLDERS:
            for path in sorted((self._run / folder).rglob("*.jsonl")):
                yield path.relative_to(self._run).as_posix()

    def _remote_files(self) -> list[str]:
        names = [path.name for path in _single_files(self._run)]
        there = {entry.name for entry in self._storage.entries(self.place) if not entry.is_folder}
        found = [name for name in names if name in there]
        for folder in _FOLDERS:
            found += self._below(folder)
        return found

    def _below(self, folder: str) -> list[str]:
        found = []
        for entry in self._storage.entries(self._at(folder)):
            name = f"{folder}/{entry.name}"
            found += self._below(name) if entry.is_folder else [name] if name.endswith(".jsonl") else []
        return found

    def _at(self, name: str) -> Remote:
        return self.place / name


def open_mirror(config: Config) -> Mirror | None:
    """The mirror that a configuration asks for; None if it asks for none."""
    place = config.checkpoint.remote
    if place is None:
        return None
    assert isinstance(place, Remote), "the configuration refuses others"
    faults = config.faults
    return Mirror(config.run.dir, place, Storage(faults.storage_s), faults.peer_s)


def _single_files(run: Path) -> list[Path]:
    return [paths.config_file(run), paths.classes_file(run)]


def _patiently(work: Callable[[], object], alive: Callable[[], object]) -> None:
    """Do work that may take long, in a thread."""
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            work()
        except BaseException as error:  # raised by the caller's thread
            errors.append(error)

    thread = threading.Thread(target=attempt, name="remote-open", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK_S)
        alive()
    if errors:
        raise errors[0]

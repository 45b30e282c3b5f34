"""A run's copy on object storage: its checkpoints, and what else a fresh machine needs."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from ppar_dist.checkpoint import (
    CheckpointError,
    Destination,
    checkpoint_name,
    find_checkpoint,
    list_checkpoints,
    publish_fetched,
    step_of,
    verify,
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
_BRIEF_S = 5.0  # for what a run can do without
_FOLDERS = ("metrics", "quarantine", "ledger")  # of records
_RESULTS = (paths.RESULTS, paths.REPORT)

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
        self._lock = threading.Lock()
        self._rollbacks = 0  # of this job
        self._damaged: set[int] = set()  # steps of checkpoints in run.dir that are not worth sending

    def open(self, alive: Callable[[], object]) -> None:
        """Claim the place, and take what it has newer than ``run.dir``, whose lock is held.

        ``alive`` is called meanwhile. `close` gives the place back, where this raises as well.

        Raises:
            UserError: another run or job has the place, or none of its checkpoints is whole.
            OSError: storage or disk fails.
        """
        _patiently(self._open, alive)

    def _open(self) -> None:
        self._owner.claim(bool(list_checkpoints(self._run)))
        self._abort_uploads()
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

    def _abort_uploads(self) -> None:
        """Give up what killed jobs have sent of large files: it is stored, and paid for, and unseen."""
        brief = Storage(min(self._storage.patience_s, _BRIEF_S))
        try:
            if count := RemoteRun(self.place, brief).abort_uploads():
                log.info(
                    "%d unfinished uploads in %s, of jobs that were killed, are aborted", count, self.place
                )
        except (OSError, UserError) as error:  # not every storage or policy lets a job list them
            log.info("unfinished uploads in %s are not looked for: %s", self.place, error)

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
        for name in self._remote_files():  # before it is published: a kill in between begins again
            path = self._run / name
            make_folder(path.parent)
            part = path.with_name(f".{path.name}.fetched")
            self._storage.download(self._at(name), part)
            sync(part)
            part.replace(path)

    def destination(self, keep: Callable[[list[int]], Set[int]]) -> Destination:
        """Where checkpoints published from now on are copied to; ``keep``: which of these steps stay."""
        return _Destination(self, keep, self._rollbacks)

    def copy(self, folder: Path, keep: Callable[[list[int]], Set[int]], rollbacks: int | None = None) -> int:
        """Copy the newest published checkpoint, and delete there what is kept no longer.

        Args:
            folder: the checkpoint.
            keep: which of the steps there stay.
            rollbacks: of this job when the checkpoint was published; None: those up to now.

        Returns:
            The bytes sent.

        Raises:
            CheckpointError, OSError, UserError: it is not there; what was there before is whole.
        """
        rollbacks = self._rollbacks if rollbacks is None else rollbacks
        self._owner.check()
        sent = self._send_files()
        step, limit = step_of(folder) or 0, self._owner.limit
        last = step if limit is None else min(step, limit)
        sent += self._checkpoints.publish(folder, self._owner.check, last)
        self._refuse_rolled_back(step, rollbacks)
        with self._lock:
            if self._owner.limit is not None and rollbacks == self._rollbacks:
                self._owner.note(None)  # publishing has deleted those of later steps
        self._owner.note_safe(step)
        self._retain(keep)
        return sent

    def lacking(self, folder: Path, keep: Callable[[list[int]], Set[int]]) -> list[Path]:
        """Checkpoints in run.dir before ``folder`` that are kept and not there, the newest first."""
        if self._owner.limit is not None:
            return []
        step, there = step_of(folder) or 0, set(self._checkpoints.steps())
        local = {step_of(each) or 0: each for each in list_checkpoints(self._run)}
        whole = local.keys() - self._damaged  # as in run.dir, a damaged one is none of the newest
        kept = keep(sorted(whole | there))
        return [local[each] for each in sorted(kept & whole - there, reverse=True) if each < step]

    def add(self, folder: Path, keep: Callable[[list[int]], Set[int]], rollbacks: int) -> int:
        """Copy a checkpoint that is lacking, and let later ones stay; all else as ``copy``."""
        step = step_of(folder) or 0
        if problems := verify(folder):  # it may be old, and nobody else has read it since
            self._damaged.add(step)
            raise CheckpointError(f"{folder.name} in run.dir is damaged: {'; '.join(problems)}")
        sent = self._checkpoints.publish(folder, self._owner.check)
        self._refuse_rolled_back(step, rollbacks)
        self._retain(keep)
        return sent

    def roll_back_to(self, step: int) -> None:
        """No checkpoint of a later step counts from now on, also where it cannot be deleted at once."""
        with self._lock:
            self._rollbacks += 1
            self._damaged = set()  # those of later steps are written again
            self._owner.note(step)

    def _refuse_rolled_back(self, step: int, rollbacks: int) -> None:
        """Take a checkpoint back that the run has rolled back behind while it was copied."""
        limit = self._owner.limit
        if rollbacks != self._rollbacks and limit is not None and step > limit:
            self._checkpoints.withdraw(step)
            raise CheckpointError("the run has rolled back behind it")

    def _retain(self, keep: Callable[[list[int]], Set[int]]) -> None:
        try:
            self._checkpoints.retain(keep, self._owner.check)
        except (OSError, UserError, CheckpointError) as error:
            log.warning("old checkpoints in %s could not be deleted, tried again: %s", self.place, error)

    def send_results(self) -> None:
        """Claim the place, send the scores and the report of a run that has ended, and leave.

        Raises:
            UserError, CheckpointError, OSError: they are not there.
        """
        self._owner.claim(True)
        try:
            self._owner.check()
            self._send(name for name in _RESULTS if (self._run / name).is_file())
            self._owner.note_results()
        finally:
            self._owner.close()

    def close(self) -> None:
        """Leave word that this job has ended."""
        self._owner.close()

    def _send_files(self) -> int:
        """Send the records that have changed."""
        sent, names = 0, list(self._local_files())
        if not self._is_swept:  # what an attempt that came to no checkpoint has left
            for name in self._remote_files():
                if name not in names and name not in _RESULTS:
                    self._storage.remove(self._at(name))
            self._is_swept = True
        return sent + self._send(names)

    def _send(self, names: Iterable[str]) -> int:
        """Send those files of the run that have changed; returns the bytes."""
        sent = 0
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


@dataclass(frozen=True)
class _Destination:
    """``Destination`` of the checkpoints that are published until the run rolls back."""

    mirror: Mirror
    keep: Callable[[list[int]], Set[int]]
    rollbacks: int

    def copy(self, folder: Path) -> int:
        return self.mirror.copy(folder, self.keep, self.rollbacks)

    def lacking(self, folder: Path) -> list[Path]:
        return self.mirror.lacking(folder, self.keep)

    def add(self, folder: Path) -> int:
        return self.mirror.add(folder, self.keep, self.rollbacks)


def open_mirror(config: Config) -> Mirror | None:
    """The mirror that a configuration asks for; None if it asks for none."""
    place = config.checkpoint.remote
    if place is None:
        return None
    assert isinstance(place, Remote), "the configuration refuses others"
    faults = config.faults
    return Mirror(config.run.dir, place, Storage(faults.storage_s), faults.peer_s)


def send_results(config: Config) -> None:
    """Send the scores and the report of a run that has ended; a failure is a warning."""
    if (mirror := open_mirror(config)) is None:
        return
    try:
        mirror.send_results()
    except (OSError, UserError, CheckpointError) as error:
        names = " and ".join(_RESULTS)
        log.warning(
            "%s are not in %s (%s); run the same command again: it sends them", names, mirror.place, error
        )


def _single_files(run: Path) -> list[Path]:
    return [paths.config_file(run), paths.classes_file(run), *(run / name for name in _RESULTS)]


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

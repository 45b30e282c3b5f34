"""Whose run a place on object storage holds, and which job writes there: ``owner.json``.

``run`` is an identity that a run.dir and its remote share, and that a fresh machine takes over with the
checkpoints. ``job`` is the job that writes: it rewrites the object every beat, so that another one, which has
a run.dir of its own and thus no lock in common, sees whether it lives. Before anything changes that others
see, a job looks whether it still is the one; between that look and the change two jobs could still meet.
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ppar_dist.checkpoint.layout import CheckpointError
from ppar_dist.errors import InUse, UserError
from ppar_dist.files.durable import write_atomically
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from ppar_dist.text import some

OWNER = "owner.json"
NOTE = "remote.json"  # in run.dir: the run's identity, and the last job there that wrote to the remote
CLOSE_S = 5.0  # at most, to leave word of the end
_LOOK_S = 0.2

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Owner:
    """The content of the object; of the note in run.dir, too."""

    run: str
    job: str
    host: str = ""
    since: str = ""
    beat: int = 0
    ended: bool = False
    limit: int | None = None  # the run has rolled back to this step, which is not in the remote yet
    safe: int | None = None  # the step that was sent last
    before: str = ""  # the job that wrote before this one
    results: bool = False  # scores and report of the run's end were sent

    def to_text(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self)) + "\n"

    @staticmethod
    def from_text(text: str | bytes) -> Owner | None:
        """None where it is none."""
        try:
            facts = json.loads(text)
            return Owner(**{name: facts[name] for name in facts if name in Owner.__dataclass_fields__})
        except (ValueError, TypeError):
            return None


class Ownership:
    """This job's right to write to a remote."""

    def __init__(self, run: Path, place: Remote, storage: Storage, silent_s: float) -> None:
        """Nothing is claimed yet. ``silent_s``: without a beat after which another job counts as dead."""
        self._note, self._object = run / NOTE, place / OWNER
        self._place, self._storage, self._silent_s = place, storage, silent_s
        host, since = socket.gethostname(), time.strftime("%Y-%m-%d %H:%M:%S")
        self._self = Owner("", uuid.uuid4().hex, host, since)
        self.limit: int | None = None
        self._writes = (
            threading.Lock()
        )  # the note is written by the training thread and by the one that sends
        self._end = threading.Event()
        self._thread: threading.Thread | None = None

    def claim(self, has_checkpoints: bool) -> None:
        """Take the place for this job, waiting for another's end; its run.dir is locked already.

        Raises:
            InUse: another job writes there.
            UserError: another run is kept there.
        """
        noted, found = self._noted(), self._found()
        mine = noted.run if noted is not None else None
        if found is not None and found.run != mine and (mine is not None or has_checkpoints):
            raise UserError(
                f"a remote keeps one run: {self._place} keeps another one than {self._note.parent} "
                f"(owner.json of {found.host}, {found.since}); give another checkpoint.remote or run.dir"
            )
        if found is not None and not found.ended and (noted is None or noted.job != found.job):
            self._wait_for_end(found)
        if found is None and mine is None and (entries := self._storage.entries(self._place)):
            raise UserError(
                f"a remote is an empty prefix or a run's own: {self._place} has no {OWNER}, but holds "
                f"{some([entry.name for entry in entries])}, which would be deleted; give another "
                "checkpoint.remote"
            )
        run = found.run if found is not None else mine or uuid.uuid4().hex
        # A job elsewhere has gone on since: what was noted here is of a course that it has left behind.
        is_newest = found is None or (noted is not None and found.job in (noted.job, noted.before))
        known = noted if is_newest else found
        self.limit = known.limit if known is not None else None
        self._self = replace(
            self._self,
            run=run,
            safe=known.safe if known is not None else None,
            before=found.job if found is not None else "",
        )
        self.note(self.limit)  # first: a kill in between leaves a run.dir that knows its remote
        self._storage.write(self._object, self._self.to_text().encode())
        self._thread = threading.Thread(target=self._beat, name="remote-owner", daemon=True)
        self._thread.start()

    def note(self, limit: int | None) -> None:
        """Write down in run.dir that no checkpoint of a later step than ``limit`` counts; None: all do."""
        with self._writes:
            self.limit, self._self = limit, replace(self._self, limit=limit)
            write_atomically(self._note, self._self.to_text())

    def note_safe(self, step: int) -> None:
        """Write down in run.dir that the remote has the checkpoint of ``step``."""
        with self._writes:
            self._self = replace(self._self, safe=step)
            write_atomically(self._note, self._self.to_text())

    def note_results(self) -> None:
        """Write down in run.dir that the remote has the scores and the report of the run's end."""
        with self._writes:
            self._self = replace(self._self, results=True)
            write_atomically(self._note, self._self.to_text())

    def check(self) -> None:
        """Look whether this job still is the one that writes.

        Raises:
            CheckpointError: another one is.
        """
        self._refuse_another(self._found())

    def _refuse_another(self, found: Owner | None) -> None:
        if found is not None and found.job != self._self.job:
            raise CheckpointError(
                f"{self._place} was taken over by a job on {found.host}, since {found.since}; end one of them"
            )

    def close(self) -> None:
        """End the beat, and leave word that this job has ended, for ``CLOSE_S`` at most."""
        if self._thread is None:
            return
        self._end.set()
        closing = threading.Thread(
            target=self._leave_word, args=(self._thread,), name="remote-end", daemon=True
        )
        self._thread = None
        closing.start()
        closing.join(CLOSE_S)  # a request may hang for longer; then the next job waits for this one's silence

    def _leave_word(self, beat: threading.Thread) -> None:
        beat.join()
        with suppress(OSError, UserError, CheckpointError):
            brief = Storage(min(self._storage.patience_s, CLOSE_S))
            self._refuse_another(Owner.from_text(brief.read(self._object)))
            brief.write(self._object, replace(self._self, ended=True).to_text().encode())

    def _beat(self) -> None:
        number, brief = 0, Storage(self._silent_s / 6)
        while not self._end.wait(self._silent_s / 6):
            number += 1
            with suppress(OSError, UserError):  # the next upload says so
                found = Owner.from_text(brief.read(self._object))
                if found is not None and found.job != self._self.job:
                    return
                brief.write(self._object, replace(self._self, beat=number).to_text().encode())

    def _wait_for_end(self, found: Owner) -> None:
        who = f"a job on {found.host}, since {found.since}"
        log.warning("%s is written by %s; waiting %.0f s for its end", self._place, who, self._silent_s)
        began = time.monotonic()
        while (waited := time.monotonic() - began) < self._silent_s:
            time.sleep(min(_LOOK_S * 5, self._silent_s - waited + 0.01))
            now = self._found()
            if now is None or now.ended:
                return
            if (now.job, now.beat) != (found.job, found.beat):
                raise InUse(
                    f"one job writes to a remote, and {self._place} is in use by {who}; end that job, or "
                    "give another checkpoint.remote"
                )

    def _found(self) -> Owner | None:
        try:
            return Owner.from_text(self._storage.read(self._object))
        except FileNotFoundError:
            return None

    def _noted(self) -> Owner | None:
        try:
            return Owner.from_text(self._note.read_bytes())
        except FileNotFoundError:
            return None


def noted_owner(run: Path) -> Owner | None:
    """What ``run`` notes of its remote; None where nothing is noted."""
    try:
        return Owner.from_text((run / NOTE).read_bytes())
    except OSError:
        return None

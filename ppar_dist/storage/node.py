"""What a node does with object storage: where it keeps what it fetched, how much, and how long it asks."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ppar_dist.files.durable import sync
from ppar_dist.storage import progress
from ppar_dist.storage.cache import NodeCache
from ppar_dist.storage.cache_folder import lock, make_own, unlock
from ppar_dist.storage.entries import hold, remove_unused, unused
from ppar_dist.storage.location import Location, Remote
from ppar_dist.storage.remote import PATIENCE_S, Storage

SIZE = 50_000_000_000
UNUSED_DAYS = 30.0  # after which indexes and weights are removed
_LOOK_S = 0.2  # between looks at who fetches the same
_LEFT_S = 3600.0  # a half-written file that did not grow for so long is nobody's
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)

log = logging.getLogger(__name__)


def usual_folder() -> Path:
    """Where a node keeps what it fetched, when nothing else is said: a folder of this user's own."""
    return Path(tempfile.gettempdir()) / f"ppar-dist-cache-{os.getuid()}"


@dataclass(frozen=True)
class NodeStorage:
    """Object storage as the processes of a node use it together.

    Attributes:
        folder: of what was fetched, on a disk of the node.
        size: bytes of parts of shards in it, at most; indexes and weights come on top.
        patience_s: seconds that a request is tried again.
        ahead: reads under way for what comes later in the order, per process.
        together: samples that are fetched together, where they stand one after the other.
    """

    folder: Path = field(default_factory=usual_folder)
    size: int = SIZE
    patience_s: float = PATIENCE_S
    ahead: int = 0
    together: int = 16

    @property
    def storage(self) -> Storage:
        """Requests with this patience."""
        return Storage(self.patience_s, is_data=True)

    @property
    def cache(self) -> NodeCache:
        """The parts of shards that this node has."""
        return NodeCache(self.folder / "shards", self.size)

    def prepare(self) -> None:
        """Make the folder, clear what dead processes left, and make it no larger than it may be.

        Raises:
            UserError: it is another user's, or others may write into it.
        """
        with contextlib.suppress(OSError):  # reading goes on without
            make_own(self.folder)  # before its own folders, which would be made with it
        self.cache.prepare()

    def fetched(self, place: Location) -> Path:
        """A file, fetched once per node and version if it is an object; each time where storage tells none.

        Raises:
            FileNotFoundError: there is no such object.
            StorageDenied, StorageUnavailable: as of ``Storage``.
        """
        if isinstance(place, Path):
            return place
        facts = self.storage.facts(place)
        digest = hashlib.sha256(f"{place}\n{facts.bytes}\n{facts.version}".encode()).hexdigest()
        entry = self.folder / "files" / digest[:24]
        path = entry / place.name
        with self.alone(entry.name):
            entry.mkdir(parents=True, exist_ok=True)
            hold(entry)
            is_there = facts.version != "" and path.is_file() and path.stat().st_size == facts.bytes
            if not is_there:
                self.download(place, path)
        if not is_there:
            self.clear()
        return path

    def clear(self) -> None:
        """Remove the indexes and weights that nobody has used for ``UNUSED_DAYS``, nor uses now."""
        for kind in ("files", "domains"):
            for entry in unused(self.folder / kind, UNUSED_DAYS):
                path = self.folder / "locks" / entry.name
                with contextlib.suppress(OSError):
                    file = lock(path, 0.0)  # who begins to use it would hold that
                    if file is not None:
                        remove_unused(entry, UNUSED_DAYS)
                        path.unlink()
                        unlock(file)

    def download(self, place: Remote, path: Path) -> None:
        """Copy an object into a file that appears whole, after a power cut too: it is synced before."""
        for left in path.parent.glob(".*"):
            # Of a process that died: this one is alone, but for a file system without locks.
            if left.name.startswith(f".{path.name}.") and time.time() - left.stat().st_mtime > _LEFT_S:
                left.unlink(missing_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            self.storage.download(place, temporary)
            sync(temporary)
            temporary.replace(path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """One process of the node at a time; a process that dies lets the next one in.

        Who waits gives a sign of life whenever the one who is in does (``progress``).
        """
        locks = self.folder / "locks"
        make_own(self.folder)
        locks.mkdir(parents=True, exist_ok=True)
        file = _locked(locks / name)
        if file is None:
            yield
            return
        try:
            with progress.shown_by(file):
                yield
        finally:
            unlock(file)


def _locked(path: Path) -> int | None:
    """The open file, locked for the caller, however long that takes; None where there are no locks."""
    shown: int | None = None
    while True:
        try:
            file = lock(path, _LOOK_S)
        except OSError as error:
            if error.errno in _NO_LOCKS:  # fetched twice at worst
                return None
            raise
        if file is not None:
            return file
        try:
            now = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
        if shown is None:
            log.info("another process of this node fetches what this one needs, too; it is waited for")
        elif shown != now:
            progress.attempt_ended()
        shown = now

"""What a node does with object storage: where it keeps what it fetched, how much, and how long it asks."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ppar_dist.files.durable import sync
from ppar_dist.storage.cache import NodeCache
from ppar_dist.storage.cache_folder import make_own
from ppar_dist.storage.location import Location, Remote
from ppar_dist.storage.remote import PATIENCE_S, Storage

SIZE = 50_000_000_000


def usual_folder() -> Path:
    """Where a node keeps what it fetched, when nothing else is said: a folder of this user's own."""
    return Path(tempfile.gettempdir()) / f"ppar-dist-cache-{os.getuid()}"


@dataclass(frozen=True)
class NodeStorage:
    """Object storage as the processes of a node use it together.

    Attributes:
        folder: of what was fetched, on a disk of the node.
        size: bytes of parts of shards in it, at most; files of an index come on top.
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
        """A file, fetched once per node and version if it is an object.

        Raises:
            FileNotFoundError: there is no such object.
            StorageDenied, StorageUnavailable: as of ``Storage``.
        """
        if isinstance(place, Path):
            return place
        facts = self.storage.facts(place)
        digest = hashlib.sha256(f"{place}\n{facts.bytes}\n{facts.version}".encode()).hexdigest()
        path = self.folder / "files" / digest[:24] / place.name
        with self.alone(digest):
            if not path.is_file() or path.stat().st_size != facts.bytes:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.download(place, path)
        return path

    def download(self, place: Remote, path: Path) -> None:
        """Copy an object into a file that appears whole."""
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
        """One process of the node at a time; a process that dies lets the next one in."""
        locks = self.folder / "locks"
        make_own(self.folder)
        locks.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(locks / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: fetched twice at worst
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

"""What was fetched whole, as an index, weights or a checkpoint: a folder each, removed when nobody uses it.

A process that uses an entry holds a shared lock on its folder until it ends, however it ends; processes that
it forks hold it too. So an entry stays while a job runs that may open its files again, as a loader worker of
the next epoch does. Without a lock the last use is the latest of the folder's time and of its files' times of
access, which a file system keeps to the day. Where there are no locks, nothing is removed.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from ppar_dist.storage.cache_folder import unlock

DAY_S = 86_400.0
_REMOVED = ".removed-"  # an entry that is being removed
_HELD: dict[Path, int] = {}  # open folders of this process; those forked from it have them open, too

log = logging.getLogger(__name__)


def hold(entry: Path) -> None:
    """Say that this process uses an entry, from now until it ends.

    Called while nobody removes the entry: under the lock that ``remove_unused`` is called under.
    """
    for path, file in list(_HELD.items()):
        if not _is_at(file, path):
            del _HELD[path]
            os.close(file)
    with contextlib.suppress(OSError):  # a file system without locks
        if entry not in _HELD:
            _HELD[entry] = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(_HELD[entry], fcntl.LOCK_SH)
        os.utime(_HELD[entry])


def unused(folder: Path, days: float) -> Iterator[Path]:
    """Entries in a folder that were not used for so long, by their times; what a kill left half-removed."""
    with contextlib.suppress(OSError):
        for entry in sorted(folder.iterdir()):
            if entry.name.startswith(_REMOVED) or time.time() - _last_use(entry) > days * DAY_S:
                yield entry


def remove_unused(entry: Path, days: float) -> None:
    """Remove an entry, unless it is in use or was used meanwhile. It goes whole: a kill leaves no part of it.

    Called under a lock that keeps others from beginning to use it, which ``hold`` is called under too.
    """
    try:
        if not entry.name.startswith(_REMOVED):
            file = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - _last_use(entry) <= days * DAY_S:
                    return
                entry = entry.rename(entry.with_name(_REMOVED + entry.name))
            finally:
                unlock(file)
            log.info("%s was not used for %g days and is removed", entry, days)
        shutil.rmtree(entry)
    except OSError:
        pass  # in use, removed by another, or no lock is to be had


def _last_use(entry: Path) -> float:
    """Seconds since the epoch; now where it cannot be told."""
    try:
        times = [entry.stat().st_mtime]
        for path in entry.rglob("*"):
            if not path.is_dir():
                found = path.stat()
                times += [found.st_atime, found.st_mtime]
        return max(times)
    except OSError:
        return time.time()


def _is_at(file: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except OSError:
        return False

"""Who is reading a checkpoint: a shared lock on its manifest, which holds between processes.

Deleting asks for an exclusive lock and keeps the checkpoint if it is being read. The lock ends with the
process that holds it, however that ends. Where storage has no locks, reading and deleting do without.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ppar_dist.checkpoint.layout import MANIFEST, CheckpointError


class CheckpointGone(CheckpointError):
    """A checkpoint was deleted, or is being deleted, before it could be read."""


@contextmanager
def reading(folder: Path) -> Iterator[Path]:
    """Keep a checkpoint from being deleted, by this or any process, while it is read.

    Raises:
        CheckpointGone: it has been deleted, or is being deleted.
    """
    descriptor = _open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            if not _lock(descriptor, fcntl.LOCK_SH) or not _is_still_there(folder, descriptor):
                raise CheckpointGone(f"checkpoint {folder} was deleted before it was read; use a newer one")
        elif not folder.exists():
            raise CheckpointGone(f"checkpoint {folder} was deleted before it was read; use a newer one")
        yield folder
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def alone(folder: Path) -> Iterator[bool]:
    """Lock a checkpoint exclusively, to delete it; yields False where it is being read."""
    descriptor = _open(folder, os.O_RDWR)  # network storage locks alone only what is open for writing
    try:
        yield descriptor is None or _lock(descriptor, fcntl.LOCK_EX)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(folder: Path, flags: int) -> int | None:
    try:
        return os.open(folder / MANIFEST, flags)
    except OSError:  # no manifest, or none that may be opened: nothing to lock
        return None


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # this storage has no locks
        return True
    return True


def _is_still_there(folder: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(folder / MANIFEST), os.fstat(descriptor))
    except OSError:
        return False

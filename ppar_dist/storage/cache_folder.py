"""The folder of a cache: whose it is, which files lie in it, and locks between the processes of a node.

A lock is the kernel's, on an open file: it ends with its holder, however that ends, and holds between
threads too. It is asked for again and again instead of waited for: a stopped holder stops nobody for ever.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ppar_dist.errors import UserError
from ppar_dist.storage.unit_file import Unit, named_unit

COUNT = "held"  # the file with the number of bytes that the others take
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_FIRST_LOOK_S, _LONGEST_LOOK_S = 0.0005, 0.005


def make_own(folder: Path) -> None:
    """Make the folder where there is none, for this user alone.

    Raises:
        UserError: it is another user's, others may write into it, or it is not a folder.
        OSError: it cannot be made.
    """
    another = "give another data.cache.folder"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700, parents=True)
    link, found = folder.lstat(), folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise UserError(f"data.cache.folder is a folder, got the file {folder}; {another}")
    for owner in (link.st_uid, found.st_uid):  # a link of another user may lead anywhere
        if owner != os.geteuid():
            raise UserError(
                f"data.cache.folder belongs to who runs the job (user {os.geteuid()}), {folder} belongs to "
                f"user {owner}; {another}"
            )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UserError(
            f"data.cache.folder is written by its owner alone, {folder} has mode "
            f"{stat.S_IMODE(found.st_mode):04o}; chmod go-w {folder}, or {another}"
        )


def units_in(folder: Path) -> tuple[list[Unit], list[Unit]]:
    """The units whose files lie there: the whole ones, and those that are being written.

    What processes left that died while they wrote is removed.
    """
    whole, parts = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            found = named_unit(entry.name)
            if found is None:
                continue
            unit, is_whole = found
            if is_whole:
                whole.append(unit)
            elif not _removed_if_left(entry.path):
                parts.append(unit)
    return whole, parts


def _removed_if_left(part: str) -> bool:
    """Remove a part unless a living process writes it; returns whether it is gone."""
    try:
        file = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    try:
        # A writer that has made it and not locked it yet sees that the name is gone, and begins again.
        if not _try_lock(file) or not _is_named(file, part):
            return False
        os.unlink(part)
        return True
    finally:
        unlock(file)


def lock(path: Path, wait_s: float, is_in_vain: Callable[[], bool] = lambda: False) -> int | None:
    """The open file ``path``, made where there is none, locked for the caller alone; ``unlock`` it.

    Args:
        path: the file.
        wait_s: seconds to wait for another holder.
        is_in_vain: asked meanwhile, whether there is no more need.

    Returns:
        A descriptor; None where another held the lock all the time, or the need went.

    Raises:
        OSError: the file cannot be made, or its file system has no locks.
    """
    end = time.monotonic() + wait_s
    while True:
        file = os.open(path, _FLAGS, 0o600)
        try:
            is_locked = _is_locked_in_time(file, end, is_in_vain)
            if is_locked and _is_named(file, path):
                return file
        except BaseException:
            unlock(file)
            raise
        unlock(file)
        if not is_locked:
            return None


def _is_locked_in_time(file: int, end: float, is_in_vain: Callable[[], bool]) -> bool:
    pause = _FIRST_LOOK_S
    while not _try_lock(file):
        if time.monotonic() > end or is_in_vain():
            return False
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_LOOK_S)
    return True


def unlock(file: int) -> None:
    """Give a lock back and close its file. A process forked meanwhile has the file open, too."""
    with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_UN)
    os.close(file)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_named(file: int, path: str | Path) -> bool:
    """Whether the open file still has this name: its last holder may have renamed or removed it."""
    try:
        return os.path.samestat(os.fstat(file), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


class Count:
    """The number in the locked file of a folder: bytes that its units take, those being written too."""

    def __init__(self, file: int) -> None:
        self._file = file

    def read(self) -> int | None:
        """The number; None where there is none yet."""
        text = os.pread(self._file, 32, 0)
        return int(text) if text.isdigit() else None

    def write(self, number: int) -> None:
        """Replace the number, at once."""
        os.pwrite(self._file, b"%020d" % number, 0)


@contextmanager
def counting(folder: Path, wait_s: float) -> Iterator[Count | None]:
    """Change the files of a folder, alone; None where another has done so for longer than ``wait_s``."""
    file = lock(folder / COUNT, wait_s)
    try:
        yield None if file is None else Count(file)
    finally:
        if file is not None:
            unlock(file)

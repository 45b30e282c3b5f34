"""Files that outlive a kill and a power cut: written, synced, and only then put under their name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from pathlib import Path

# Large, because a thread that hashes asks for Python's lock after each piece and may wait 5 ms for it.
_PIECE = 16 << 20
_TAIL = 40  # characters of a name in that of its temporary file: a longest name has no room for more


def sync(path: Path) -> None:
    """Wait until the content of a file is on its storage."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on its storage; some network storage has no such call."""
    try:
        sync(path)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each synced into the one that holds it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write(path: Path, content: str | bytes | memoryview) -> None:
    """Write a file, text as UTF-8, and wait until its content is on its storage."""
    with path.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, content: str | bytes | memoryview) -> None:
    """Replace a file so that readers, also after a power cut, see the old or the new content whole.

    Raises:
        OSError: it cannot be written; ``filename`` is ``path``.
    """
    temporary = path.with_name(f".{path.name[-_TAIL:]}.{os.getpid()}")
    try:
        write(temporary, content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):  # the first failure is the one to report
            temporary.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
    sync_folder(path.parent)


def fingerprint(path: Path, from_storage: bool = False) -> tuple[int, str]:
    """Bytes and sha256 of a file.

    Args:
        path: the file.
        from_storage: of a synced file: forget what memory holds of it, so that its storage answers.
    """
    digest, size = hashlib.sha256(), 0
    piece = memoryview(bytearray(min(_PIECE, max(path.stat().st_size, 1))))
    with path.open("rb", buffering=0) as file:
        if from_storage and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        while count := file.readinto(piece):
            digest.update(piece[:count])
            size += count
    return size, digest.hexdigest()

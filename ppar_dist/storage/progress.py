"""A sign that storage is at work, which the processes of a rank share: a slow read is not a hang."""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Shared with the loader workers that this process forks. Lost updates do no harm: any change is a sign.
_COUNTER = memoryview(mmap.mmap(-1, 8)).cast("Q")
_SHOWN: set[int] = set()  # open files whose time tells other processes of the node


def attempt_ended() -> None:
    """A request has been answered, in part at least, or will be sent again within the time it may take."""
    _COUNTER[0] = (_COUNTER[0] + 1) % 2**63
    for file in tuple(_SHOWN):
        with contextlib.suppress(OSError):
            os.utime(file)


@contextmanager
def shown_by(file: int) -> Iterator[None]:
    """Meanwhile each sign of this process changes the time of an open file, for those who wait for it."""
    _SHOWN.add(file)
    try:
        yield
    finally:
        _SHOWN.discard(file)


def attempts() -> int:
    """Changes whenever an attempt of this process or one forked from it has ended."""
    return int(_COUNTER[0])

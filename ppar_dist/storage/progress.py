"""A sign that storage is at work, which the processes of a rank share: a slow read is not a hang."""

from __future__ import annotations

import mmap

# Shared with the loader workers that this process forks. Lost updates do no harm: any change is a sign.
_COUNTER = memoryview(mmap.mmap(-1, 8)).cast("Q")


def attempt_ended() -> None:
    """A request has been answered, or will be sent again within the time it may take."""
    _COUNTER[0] = (_COUNTER[0] + 1) % 2**63


def attempts() -> int:
    """Changes whenever an attempt of this process or one forked from it has ended."""
    return int(_COUNTER[0])

"""Children that do not outlive their parent, whatever ended it."""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL (Linux only).

    The kernel watches the *thread* that started this process: a parent that starts children from a
    thread which ends early loses them then. The setting is lost over fork, and kept over exec.

    Args:
        signal_number: the signal, SIGKILL where nothing may be caught or ignored.
        parent: process id of the parent, where it is known; a parent that had died before this call is
            then noticed. Without it only a death during the call is.

    Raises:
        OSError: the kernel refused.
    """
    if not sys.platform.startswith("linux"):
        return
    expected = os.getppid() if parent is None else parent
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl(PR_SET_PDEATHSIG, {signal_number}): {os.strerror(code)}")
    if os.getppid() != expected:  # it died before the kernel knew
        os.kill(os.getpid(), signal_number)

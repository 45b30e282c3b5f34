"""Processes of this machine; states and start times from /proc, where it exists."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable
from enum import Enum
from pathlib import Path

import psutil

_PROC = Path("/proc")
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Process(Enum):
    """What the kernel says about a process."""

    UNKNOWN = "unknown"  # of another machine, or without /proc
    ALIVE = "alive"
    STOPPED = "stopped"  # by SIGSTOP or a debugger
    GONE = "gone"


def machine() -> str:
    """An id that two processes share if, and only if, they see each other by pid; "" where unknown.

    A host name is not enough: containers on one host may share it and yet have pids of their own.
    """
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{(_PROC / 'self/ns/pid').stat().st_ino}"
    except OSError:
        return ""


def born(pid: int) -> int:
    """When process ``pid`` started, in ticks since the machine's start; 0 where unknown."""
    fields = _status(pid)
    return int(fields[19]) if fields else 0


def started() -> float:
    """When this process started, in seconds since 1970; now, where that cannot be asked."""
    with contextlib.suppress(psutil.Error, OSError):
        return min(float(psutil.Process().create_time()), time.time())
    return time.time()


def look(pid: int, born_at: int) -> Process:
    """The state of the process ``pid`` that started at ``born_at``; only for pids of this machine."""
    fields = _status(pid)
    if not fields and _is_hidden(pid):
        return Process.UNKNOWN
    # A killed process remains as a zombie until its parent has waited for it.
    if not fields or fields[0] in "ZX" or int(fields[19]) != born_at:
        return Process.GONE
    return Process.STOPPED if fields[0] in "Tt" else Process.ALIVE


def _is_hidden(pid: int) -> bool:
    """Whether /proc does not show a process of another user (hidepid), as on many clusters."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return False


def descendants(pid: int) -> dict[int, str]:
    """The command name of each process that ``pid`` or a child of it has started, by pid; without zombies."""
    found = {}
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            if child.status() != psutil.STATUS_ZOMBIE:
                found[child.pid] = child.name()
    return found


def ancestors(pid: int) -> list[tuple[int, str]]:
    """Process id and command line of a process's parent, of that one's, and so on."""
    found = []
    with contextlib.suppress(psutil.Error):  # one of them has just ended, or is hidden
        for parent in psutil.Process(pid).parents():
            found.append((parent.pid, " ".join(parent.cmdline())))
    return found


def listening_ports(pid: int) -> set[int]:
    """The TCP ports on which a process listens; none where that may not be asked."""
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        ask = getattr(process, "net_connections", None) or process.connections  # psutil 6 renamed it
        return {each.laddr.port for each in ask("tcp") if each.status == psutil.CONN_LISTEN}
    return set()


def members(group: int) -> list[int]:
    """Process ids of a process group, without zombies."""
    return _pids(lambda process: os.getpgid(process.pid) == group)


def with_variable(name: str, value: str) -> list[int]:
    """Process ids of this user's that were started with an environment variable set so; without zombies."""
    return _pids(lambda process: process.environ().get(name) == value)


def _pids(wanted: Callable[[psutil.Process], bool]) -> list[int]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, ProcessLookupError):  # another user's, or it has just ended
            if wanted(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
    return found


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if it is not there."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text.rpartition(")")[2].split()


def die_with_parent(signal_number: int, parent: int | None = None) -> None:
    """Have the kernel send this process a signal when its parent dies, even by SIGKILL (Linux only).

    The kernel watches the *thread* that started this process: a parent that starts children from a
    thread which ends early loses them then. The setting is cleared by fork and kept by exec.

    Args:
        signal_number: the signal, SIGKILL where nothing may be caught or ignored.
        parent: process id of the parent, where it is known; a parent that had died before this call is
            then noticed. Without it only a death during the call is noticed.

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
    if os.getppid() != expected:  # the parent died before the call
        os.kill(os.getpid(), signal_number)

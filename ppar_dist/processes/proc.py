"""Processes of this machine, as /proc tells of them; where there is none, nothing is known."""

from __future__ import annotations

import ctypes
import os
import sys
from enum import Enum
from pathlib import Path

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

    A host name does not tell: containers on one host may share it and yet have pids of their own.
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


def look(pid: int, born_at: int) -> Process:
    """What has become of the process ``pid`` that started at ``born_at``; only for pids of this machine."""
    fields = _status(pid)
    if not fields and _is_hidden(pid):
        return Process.UNKNOWN
    # A killed process stays as a zombie until its parent has asked for it.
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
    """The command name of each process that ``pid`` or a child of it has started, by pid."""
    children: dict[int, list[tuple[int, str]]] = {}
    for entry in _PROC.glob("[0-9]*"):
        fields = _status(int(entry.name))
        if fields and fields[0] not in "ZX":
            children.setdefault(int(fields[1]), []).append((int(entry.name), fields[-1]))
    found: dict[int, str] = {}
    ahead = [pid]
    while ahead:
        for child, command in children.get(ahead.pop(), []):
            found[child] = command
            ahead.append(child)
    return found


def ancestors(pid: int) -> list[tuple[int, str]]:
    """Process id and command line of a process's parent, of that one's, and so on."""
    found = []
    while fields := _status(pid):
        pid = int(fields[1])
        try:
            command = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")
        except OSError:
            break  # pid 0, or it has just ended
        found.append((pid, command.decode("utf-8", errors="replace")))
    return found


def members(group: int) -> list[int]:
    """Process ids of a process group, without those that only wait to be asked for."""
    found = []
    for entry in _PROC.glob("[0-9]*"):
        fields = _status(int(entry.name))
        if fields and fields[0] not in "ZX" and int(fields[2]) == group:
            found.append(int(entry.name))
    return found


def with_variable(name: str, value: str) -> list[int]:
    """Process ids of this user's that were started with an environment variable set so; without zombies."""
    found = []
    for entry in _PROC.glob("[0-9]*"):
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue  # another user's, or it has just ended
        if os.fsencode(f"{name}={value}") in variables:
            found.append(int(entry.name))
    return found


def _status(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on, then the command's name; empty if it is not there."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    head, _, tail = text.rpartition(")")
    return [*tail.split(), head.partition("(")[2]]


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

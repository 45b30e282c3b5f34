"""A rank's duties to the command that started it: notes of start and exit, and ending with its launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.view import terminal

NOTES_VARIABLE = "PPAR_EXIT_NOTES"
NOHUP_VARIABLE = "PPAR_NOHUP"  # set where that command ignores SIGHUP
FRONT_VARIABLE = "PPAR_FRONT"  # process id of the command that started the launcher
_LAUNCHER_NAMES = ("deepspeed", "torchrun", "torch.distributed.run", "ppar_dist", "ppar-dist")
_LOOK_S = 1.0


def is_rank() -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in os.environ


def is_ours() -> bool:
    """Whether this package's own command started this process as one of its ranks."""
    return is_rank() and NOTES_VARIABLE in os.environ


def note_start() -> int:
    """Called by a rank once it listens to signals; returns the process id of its launcher."""
    if NOTES_VARIABLE in os.environ:  # undoes front._block_signals
        if NOHUP_VARIABLE in os.environ:
            signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _note("started", f"{os.getpid()} {proc.born(os.getpid())}")
    return os.getppid()


def note_exit(code: int) -> None:
    """Called by a rank that ends with ``code``: its last action, which never blocks."""
    terminal.close_all()
    _note("exit", str(code))


def end_with_launchers(unless: Callable[[], bool]) -> None:
    """Called by a rank: when any of the launchers above it is killed, this process gets a SIGTERM.

    Not if ``unless()`` is true then: a rank that was already asked to end must not be asked twice.

    The kernel reports only the death of the parent, and launchers are chains: DeepSpeed's runner dies of a
    signal, and its child, which started the ranks, lives on. A launcher killed before this call is not an
    ancestor any more, and nor is the command that the environment names: that shows the loss.
    """
    ancestors = proc.ancestors(os.getpid())
    above = [
        (pid, proc.born(pid))
        for pid, command in ancestors
        if any(name in command for name in _LAUNCHER_NAMES)
    ]
    is_ours = Path(
        os.environ.get(NOTES_VARIABLE, os.devnull)
    ).is_dir()  # not of a job that has ended long ago
    front = os.environ.get(FRONT_VARIABLE) if is_ours else None
    # After a launcher was killed, the kernel may make the command itself the parent, as process 1 of a
    # container; it is never a rank's parent otherwise.
    is_cut_off = bool(ancestors) and front is not None and int(front) not in [pid for pid, _ in ancestors[1:]]

    def watch() -> None:
        while not is_cut_off and all(proc.look(pid, born) is not Process.GONE for pid, born in above):
            time.sleep(_LOOK_S)
        if not unless():
            os.kill(os.getpid(), signal.SIGTERM)

    if above or is_cut_off:
        threading.Thread(target=watch, name="launchers", daemon=True).start()


def _note(what: str, text: str) -> None:
    folder = os.environ.get(NOTES_VARIABLE)
    if folder and is_rank() and Path(folder).is_dir():
        with contextlib.suppress(OSError):  # without a note this rank counts as one that was killed
            (Path(folder) / f"rank-{os.environ['RANK']}.{what}").write_text(text)

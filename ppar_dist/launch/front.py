"""Starting the ranks of this machine through a launcher, and ending them as one job.

A launcher reports the exit code of the rank it looked at first, or one of its own. So each rank writes its
exit code to a file in a folder named by the environment, and the job's code is computed from these.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from ppar_dist import exit_codes
from ppar_dist.errors import UserError
from ppar_dist.launch.launchers import COMMANDS, Launcher
from ppar_dist.launch.nodes import Nodes, one_node
from ppar_dist.launch.rank import FRONT_VARIABLE, NOHUP_VARIABLE, NOTES_VARIABLE
from ppar_dist.processes import proc
from ppar_dist.processes.proc import Process
from ppar_dist.processes.signals import exit_code, requests
from ppar_dist.view import terminal

if TYPE_CHECKING:
    from ppar_dist.distributed.devices import Wanted  # torch loads late

_MARGIN_S = 35.0  # beyond the grace time: launchers give ranks 30 s after one of them has ended
_BY_SIGNAL = 128  # exit codes from here on mean: ended by a signal
# The code of a job whose ranks differ: the first of these, errors that no retry cures first.
_SEVERITY = (exit_codes.CONFIG, exit_codes.INTERNAL, exit_codes.INTERRUPTED, exit_codes.RESUME)


def default_ranks(device: Wanted = "auto") -> int:
    """One rank per GPU; one on a machine without GPUs, or where ``device`` is the CPU.

    Raises:
        UserError: GPUs are wanted, or were given, and torch can use none.
    """
    return max(1, _gpus(device))


def launch(
    arguments: Sequence[str],
    ranks: int,
    launcher: Launcher = "deepspeed",
    grace_s: float = 120.0,
    nodes: Nodes | None = None,
    device: Wanted = "auto",
) -> int:
    """Run ``ppar-dist ARGUMENTS`` on ``ranks`` ranks of this machine and return the exit code of the job.

    In a job of several machines this handles one of them: each gets the exit code of its own ranks. These
    codes are equal, except where ranks were killed.

    SIGTERM, SIGUSR1, SIGINT and SIGHUP (unless it is ignored) ask all ranks at once to save and end.
    Launchers would pass them on one rank after the other, kill ranks that have not ended 30 s later, or
    die of them. So this process passes them on to the ranks itself, as SIGUSR1. The launcher ignores
    SIGTERM and SIGUSR1, also where a scheduler sends them to every process of a job: only this process
    and the ranks act on them.

    Args:
        arguments: of ``ppar-dist``.
        ranks: on this machine.
        launcher: ``deepspeed`` or ``torchrun``.
        grace_s: seconds that ranks may take to end after a signal.
        nodes: the machines of the job; None for this one alone.
        device: on which the ranks compute.

    Raises:
        UserError: there are GPUs, but fewer than ranks; or they were given, and torch can use none.
    """
    gpus = _gpus(device)
    if 0 < gpus < ranks:
        raise UserError(f"a rank needs a GPU of its own: --nproc {ranks}, but this machine has {gpus}")
    environment = dict(os.environ)
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    nodes = one_node() if nodes is None else nodes
    command = [*COMMANDS[launcher](ranks, nodes), "ppar_dist", *arguments]
    numbers = range(nodes.rank * ranks, (nodes.rank + 1) * ranks)
    with tempfile.TemporaryDirectory(prefix="ppar-dist-") as notes:
        environment[NOTES_VARIABLE] = notes
        environment[FRONT_VARIABLE] = str(os.getpid())
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            environment[NOHUP_VARIABLE] = "1"
        try:
            return _LauncherGroup(Path(notes), numbers, grace_s).run(command, environment)
        finally:
            terminal.give_back(sys.stderr)  # rank 0 may have been killed


def job_code(codes: Sequence[int | None], launcher_code: int, listened: bool = False) -> int:
    """The exit code of a job.

    Args:
        codes: of its ranks; None for one that was killed, which a retry may cure.
        launcher_code: the launcher's own, used when no rank left a code.
        listened: whether any rank had begun to listen to signals: without a code, it was killed.
    """
    if all(code is None for code in codes):
        if launcher_code in _SEVERITY:  # of a rank that could not write its note
            return launcher_code
        # For a killed rank torchrun returns 1, and DeepSpeed's launcher -9 modulo 256: 247.
        return exit_codes.INTERNAL if 0 < launcher_code < _BY_SIGNAL and not listened else exit_codes.RESUME
    known = {exit_codes.RESUME if code is None else code for code in codes}
    return next((code for code in _SEVERITY if code in known), max(known))


class _LauncherGroup:
    """A launcher and its ranks, which end together.

    The launcher has a process group of its own. Its ranks need not be in it (torchrun gives each a session):
    they are found by the process ids in their notes.
    """

    def __init__(self, notes: Path, ranks: Sequence[int], grace_s: float) -> None:
        """``ranks``: their numbers in the whole job."""
        self._notes, self._ranks, self._grace_s = notes, ranks, grace_s
        self._received: list[int] = []
        self._launcher: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run ``command`` until all of its group has ended; returns the job's exit code."""
        before = {number: signal.signal(number, self._receive) for number in requests()}
        try:
            self._launcher = subprocess.Popen(
                command, env=environment, start_new_session=True, preexec_fn=_block_signals
            )
            if self._received:  # a signal arrived while the process was being created
                self._pass_on()
            code = self._launcher.wait()
            self._drain(self._launcher.pid, was_killed=code < 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._code(code)

    def _receive(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and self._received:
            return  # ranks would take it for the wish to end without saving
        self._received.append(number)
        if self._launcher is not None:
            self._pass_on()

    def _pass_on(self) -> None:
        assert self._launcher is not None
        ranks = self._listening()
        for pid, _ in ranks:
            _signal(os.kill, pid, signal.SIGUSR1)
        if len(ranks) < len(self._ranks):
            # The others have nothing to save; perhaps the launcher has not even started them. Torchrun passes
            # SIGHUP on to its ranks, which are not in its group. SIGTERM is for one without a note.
            _signal(os.killpg, self._launcher.pid, signal.SIGHUP)
            _signal(os.killpg, self._launcher.pid, signal.SIGTERM)

    def _drain(self, group: int, was_killed: bool) -> None:
        """Wait for ranks that outlive their launcher: they save when it was killed."""
        deadline = time.monotonic() + self._grace_s + _MARGIN_S
        while self._left(group, was_killed) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in self._left(group, was_killed):
            _signal(os.kill, pid, signal.SIGKILL)

    def _left(self, group: int, was_killed: bool) -> list[int]:
        """Process ids of the group and the ranks that still run, without zombies.

        After a killed launcher also ranks that do not listen yet: torchrun's are not in its group.
        """
        ranks = [pid for pid, born in self._listening() if proc.look(pid, born) is not Process.GONE]
        not_listening = proc.with_variable(NOTES_VARIABLE, str(self._notes)) if was_killed else []
        return ranks + proc.members(group) + not_listening

    def _listening(self) -> list[tuple[int, int]]:
        """Process id and start time of the ranks that listen to signals."""
        notes = [self._notes / f"rank-{rank}.started" for rank in self._ranks]
        texts = [note.read_text().split() for note in notes if note.exists()]
        return [(int(text[0]), int(text[1])) for text in texts if len(text) == 2]

    def _code(self, launcher_code: int) -> int:
        codes = [self._read_code(rank) for rank in self._ranks]
        if self._received and all(code in (None, exit_codes.RESUME) for code in codes):
            return exit_code([signal.Signals(number) for number in self._received])
        return job_code(codes, launcher_code, bool(self._listening()))

    def _read_code(self, rank: int) -> int | None:
        path = self._notes / f"rank-{rank}.exit"
        text = path.read_text() if path.exists() else ""
        return int(text) if text.isdigit() else None  # empty: the disk was full


def _gpus(device: Wanted) -> int:
    import torch  # late: is_rank must answer before torch is loaded

    from ppar_dist.distributed.devices import use_cuda

    return torch.cuda.device_count() if use_cuda(device, os.environ) else 0


def _block_signals() -> None:
    """Signal state of the launcher, and of each rank until `note_start`: only SIGHUP ends them.

    Launchers set a handler for SIGTERM but keep the mask: a blocked signal does not reach the handler.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _signal(how: Callable[[int, int], None], whom: int, number: int) -> None:
    """Signal a process or a group, if it still exists."""
    with contextlib.suppress(ProcessLookupError):
        how(whom, number)

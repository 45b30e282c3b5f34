"""Starting the ranks of this machine through a launcher, and ending them as one job.

A launcher reports the exit code of whichever rank it looked at first, or one of its own; so each rank leaves
a note of its code in a folder named by the environment, and the job's code is made of these.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

from ppar_dist import exitcodes, process, terminal
from ppar_dist.config import ConfigError
from ppar_dist.launchers import COMMANDS
from ppar_dist.nodes import Nodes, one_node
from ppar_dist.preemption import SIGNALS, exit_code
from ppar_dist.process import Process

_NOTES = "PPAR_EXIT_NOTES"
_FRONT = "PPAR_FRONT"  # process id of the command that started the launcher
_LAUNCHER_NAMES = ("deepspeed", "torchrun", "torch.distributed.run", "ppar_dist", "ppar-dist")
_LOOK_S = 1.0
_MARGIN_S = 35.0  # beyond the grace time: launchers give ranks 30 s after one of them has ended
_BY_SIGNAL = 128  # codes from here on are of what a signal has ended
# Which code a job has when its ranks differ: what no retry cures before what one may cure.
_SEVERITY = (exitcodes.CONFIG, exitcodes.INTERNAL, exitcodes.INTERRUPTED, exitcodes.RESUME)


def is_rank(environment: Mapping[str, str] | None = None) -> bool:
    """Whether a launcher started this process as one of its ranks."""
    return "RANK" in (os.environ if environment is None else environment)


def default_ranks() -> int:
    """One rank per GPU; one where there is none."""
    return max(1, _gpus())


def launch(
    arguments: Sequence[str],
    ranks: int,
    launcher: str = "deepspeed",
    grace_s: float = 120.0,
    nodes: Nodes | None = None,
) -> int:
    """Run ``ppar-dist ARGUMENTS`` on ``ranks`` ranks of this machine and return the exit code of the job.

    Of a job of several machines this is one part: each is told the code that its own ranks ended with, and
    they end alike, but for ranks that were killed.

    SIGTERM, SIGUSR1 and SIGINT ask all ranks at once to save and end. Launchers would pass them on one rank
    after the other, kill ranks that have not ended 30 s later, or die of them; so this process passes them on
    itself, as SIGUSR1, to the ranks. The launcher hears neither SIGTERM nor SIGUSR1, also where a scheduler
    sends them to every process of a job: what may be asked to end is this process, and the ranks.

    Args:
        arguments: of ``ppar-dist``.
        ranks: on this machine.
        launcher: ``deepspeed`` or ``torchrun``.
        grace_s: seconds that ranks may take to end after a signal.
        nodes: the machines of the job; None for this one alone.

    Raises:
        ConfigError: there are GPUs, but fewer than ranks.
    """
    gpus = _gpus()
    if 0 < gpus < ranks:
        raise ConfigError(f"a rank needs a GPU of its own: --nproc {ranks}, but this machine has {gpus}")
    environment = dict(os.environ)
    if not gpus:
        environment["DS_ACCELERATOR"] = "cpu"
    threads = max(1, (os.cpu_count() or 1) // ranks)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    nodes = one_node() if nodes is None else nodes
    command = [*COMMANDS[launcher](ranks, nodes), "ppar_dist", *arguments]
    numbers = range(nodes.rank * ranks, (nodes.rank + 1) * ranks)
    with tempfile.TemporaryDirectory(prefix="ppar-dist-") as notes:
        environment[_NOTES] = notes
        environment[_FRONT] = str(os.getpid())
        try:
            return _Group(Path(notes), numbers, grace_s).run(command, environment)
        finally:
            terminal.give_back(sys.stderr)  # rank 0 may have been killed


def note_start() -> int:
    """Called by a rank that listens to signals from now on; returns the process id of its launcher."""
    if _NOTES in os.environ:  # what it started with, see _hear_nothing
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
    _note("started", f"{os.getpid()} {process.born(os.getpid())}")
    return os.getppid()


def note_exit(code: int) -> None:
    """Called by a rank that ends with ``code``: the last thing it does, which waits for nothing."""
    terminal.close_all()
    _note("exit", str(code))


def end_with_launchers(unless: Callable[[], bool] = lambda: False) -> None:
    """Called by a rank: when any of the launchers above it is killed, this process gets a SIGTERM.

    Not if ``unless`` holds then: a rank that was asked to end already must not be asked twice.

    The kernel tells of its parent only, and launchers are chains: DeepSpeed's runner dies of a signal, and
    its own child, which has started the ranks, lives on. What was killed before this call is no ancestor any
    more: then the command that the environment names is none, either.
    """
    ancestors = process.ancestors(os.getpid())
    above = [
        (pid, process.born(pid))
        for pid, command in ancestors
        if any(name in command for name in _LAUNCHER_NAMES)
    ]
    is_ours = Path(os.environ.get(_NOTES, os.devnull)).is_dir()  # not of a job that has ended long ago
    front = os.environ.get(_FRONT) if is_ours else None
    # Of a launcher that has been killed the kernel may make the command itself the heir, as process 1 of a
    # container; it is never a rank's parent otherwise.
    is_cut_off = bool(ancestors) and front is not None and int(front) not in [pid for pid, _ in ancestors[1:]]

    def watch() -> None:
        while not is_cut_off and all(process.look(pid, born) is not Process.GONE for pid, born in above):
            time.sleep(_LOOK_S)
        if not unless():
            os.kill(os.getpid(), signal.SIGTERM)

    if above or is_cut_off:
        threading.Thread(target=watch, name="launchers", daemon=True).start()


def job_code(codes: Sequence[int | None], launcher_code: int, listened: bool = False) -> int:
    """The exit code of a job.

    Args:
        codes: of its ranks; None for one that was killed, which a retry may cure.
        launcher_code: the launcher's own, which counts when no rank left a code.
        listened: whether any rank got so far that it would have left a code, had it not been killed.
    """
    if all(code is None for code in codes):
        if launcher_code in _SEVERITY:  # a rank's, which could leave no note
            return launcher_code
        # Of a rank that was killed torchrun makes 1, and DeepSpeed's launcher what is left of -9: 247.
        return exitcodes.INTERNAL if 0 < launcher_code < _BY_SIGNAL and not listened else exitcodes.RESUME
    known = {exitcodes.RESUME if code is None else code for code in codes}
    return next((code for code in _SEVERITY if code in known), max(known))


class _Group:
    """A launcher and its ranks, which end as a whole.

    The launcher has a process group of its own. Its ranks need not be in it (torchrun gives each a session):
    they are known by the process ids that they noted.
    """

    def __init__(self, notes: Path, ranks: Sequence[int], grace_s: float) -> None:
        """``ranks``: their numbers in the whole job."""
        self._notes, self._ranks, self._grace_s = notes, ranks, grace_s
        self._received: list[int] = []
        self._launcher: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> int:
        """Run ``command`` until all of its group has ended; returns the job's exit code."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        try:
            self._launcher = subprocess.Popen(
                command, env=environment, start_new_session=True, preexec_fn=_hear_nothing
            )
            if self._received:  # it came while the process was being made
                self._pass_on()
            code = self._launcher.wait()
            self._drain(self._launcher.pid, was_killed=code < 0)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._code(code)

    def _receive(self, number: int, _: FrameType | None) -> None:
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
            # SIGHUP on to its ranks, which are not in its group. SIGTERM is for one that could leave no note.
            _signal(os.killpg, self._launcher.pid, signal.SIGHUP)
            _signal(os.killpg, self._launcher.pid, signal.SIGTERM)

    def _drain(self, group: int, was_killed: bool) -> None:
        """Wait for ranks that outlive their launcher, as they do to save when it was killed."""
        deadline = time.monotonic() + self._grace_s + _MARGIN_S
        while self._left(group, was_killed) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in self._left(group, was_killed):
            _signal(os.kill, pid, signal.SIGKILL)

    def _left(self, group: int, was_killed: bool) -> list[int]:
        """Those of the group and the ranks that run; a zombie may stay for ever, where nobody asks for it.

        Of a launcher that was killed also ranks that have yet to listen: torchrun's are not in its group.
        """
        ranks = [pid for pid, born in self._listening() if process.look(pid, born) is not Process.GONE]
        deaf = process.with_variable(_NOTES, str(self._notes)) if was_killed else []
        return ranks + process.members(group) + deaf

    def _listening(self) -> list[tuple[int, int]]:
        """Process id and time of birth of the ranks that listen to signals."""
        notes = [self._notes / f"rank-{rank}.started" for rank in self._ranks]
        texts = [note.read_text().split() for note in notes if note.exists()]
        return [(int(text[0]), int(text[1])) for text in texts if len(text) == 2]

    def _code(self, launcher_code: int) -> int:
        codes = [self._read_code(rank) for rank in self._ranks]
        if self._received and all(code in (None, exitcodes.RESUME) for code in codes):
            return exit_code([signal.Signals(number) for number in self._received])
        return job_code(codes, launcher_code, bool(self._listening()))

    def _read_code(self, rank: int) -> int | None:
        path = self._notes / f"rank-{rank}.exit"
        text = path.read_text() if path.exists() else ""
        return int(text) if text.isdigit() else None  # empty: the disk was full


def _note(what: str, text: str) -> None:
    folder = os.environ.get(_NOTES)
    if folder and is_rank() and Path(folder).is_dir():
        with contextlib.suppress(OSError):  # without a note this rank counts as one that was killed
            (Path(folder) / f"rank-{os.environ['RANK']}.{what}").write_text(text)


def _gpus() -> int:
    import torch  # late: what only asks is_rank is answered before torch is loaded

    return torch.cuda.device_count()


def _hear_nothing() -> None:
    """What the launcher starts with, and each rank until `note_start`: only SIGHUP ends them.

    Launchers set a handler for SIGTERM but leave the mask as they find it: blocked, it does not reach that.
    """
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _signal(how: Callable[[int, int], None], whom: int, number: int) -> None:
    """Signal a process or a group, if there is any of it left."""
    with contextlib.suppress(ProcessLookupError):
        how(whom, number)

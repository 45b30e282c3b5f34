"""``ppar-dist`` that slows down, or stands still, once it has done a chosen step, until a test lets it go on.

A test that has to strike a run, or to look at it, before its end can so do it on any machine.

python -m tests.faults.held ARGUMENTS…
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from ppar_dist.cli import parser
from ppar_dist.launch import front, rank

FILE = "PPAR_TEST_HOLD"
_LOOK_S = 0.02


class Hold:
    """Steps beyond ``step`` begin ``seconds`` late, while the file exists and no signal asks the rank to end.

    What a step leaves behind (records, figures, a checkpoint that is due) is there while the next one waits.
    """

    def __init__(self, file: Path, step: int, seconds: float = 1e6) -> None:
        self._file = file
        self.environment = {FILE: str(file)}
        self.set(step, seconds)

    def set(self, step: int, seconds: float = 1e6) -> None:
        """Hold at another step."""
        whole = self._file.with_name(f"{self._file.name}.new")
        whole.write_text(f"{step} {seconds}")
        whole.replace(self._file)

    def release(self) -> None:
        """Let the job go on at full speed."""
        self._file.unlink(missing_ok=True)

    def standing(self) -> bool:
        """Whether a rank has waited since ``forget``."""
        return _note(self._file).exists()

    def forget(self) -> None:
        """Of another start."""
        _note(self._file).unlink(missing_ok=True)


def _note(file: Path) -> Path:
    return file.with_name(f"{file.name}.standing")


def hold() -> None:
    """Have this process's steps wait, where the environment says so."""
    if FILE not in os.environ:
        return
    from ppar_dist.processes.signals import Preemption
    from ppar_dist.watchdog import Watchdog

    file, asked = Path(os.environ[FILE]), threading.Event()
    its_phase, its_receive = Watchdog.phase, Preemption._receive

    def receive(self: Preemption, number: object) -> None:
        its_receive(self, number)  # type: ignore[arg-type]
        asked.set()

    def phase(self: Watchdog, name: str, step: int) -> None:
        its_phase(self, name, step)
        if name == "data":
            _wait(file, step, asked)

    Preemption._receive = receive  # type: ignore[method-assign]
    Watchdog.phase = phase  # type: ignore[method-assign]


def _wait(file: Path, step: int, asked: threading.Event) -> None:
    began = time.monotonic()
    while not asked.is_set():
        try:
            last, seconds = file.read_text().split()
        except FileNotFoundError:
            return
        if step <= int(last) or time.monotonic() - began > float(seconds):
            return
        _note(file).touch()
        asked.wait(_LOOK_S)


def main() -> int:
    """The command, or one of its ranks; launchers are told to start this module for them."""
    arguments = sys.argv[1:]
    hold()
    if rank.is_rank():
        named = arguments[:1] == ["ppar_dist"]  # the module that a launcher should have started
        return parser.main(arguments[1:] if named else arguments)
    for name, command in front.COMMANDS.items():
        front.COMMANDS[name] = lambda ranks, nodes, its=command: [*its(ranks, nodes), __spec__.name]
    return parser.main(arguments)


if __name__ == "__main__":
    sys.exit(main())

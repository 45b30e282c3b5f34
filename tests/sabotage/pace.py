"""Steps that wait: a test lets a run continue to a chosen step and holds it there, on any machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from ppar_dist.files.durable import write_atomically
from tests.sabotage.hooks import at_phase

_LOOK_S = 0.02


class Pace:
    """Steps beyond ``step`` take ``seconds`` longer, while the file exists; also the one that is being done.

    What a step leaves behind (records, figures, a checkpoint that is due) is there while the next one waits.
    """

    def __init__(self, file: Path, step: int = 0, seconds: float = 1e6) -> None:
        self._file = file
        self.hold, self.pace = f"hold={file}", f"pace={file}"
        self.set(step, seconds)

    def set(self, step: int = 0, seconds: float = 1e6) -> None:
        """Wait at another step, or for another time."""
        write_atomically(self._file, f"{step} {seconds}")

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


def hold(file: str) -> None:
    """Have this process's steps wait before they read their data, until it is asked to end."""
    from ppar_dist.processes.signals import Preemption

    asked: list[Preemption] = []
    original = Preemption.watch

    def watch(self: Preemption) -> Preemption:
        asked.append(self)
        return original(self)

    Preemption.watch = watch  # type: ignore[method-assign]
    at_phase("data", lambda step: _wait(Path(file), step, lambda: any(each.requested for each in asked)))


def slow_down(file: str) -> None:
    """Have this process's steps last longer."""
    at_phase("forward", lambda step: _wait(Path(file), step, lambda: False))


def _wait(file: Path, step: int, is_asked: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not is_asked():
        try:
            last, seconds = file.read_text().split()
        except FileNotFoundError:
            return
        if step <= int(last) or time.monotonic() - began > float(seconds):
            return
        _note(file).touch()
        time.sleep(_LOOK_S)

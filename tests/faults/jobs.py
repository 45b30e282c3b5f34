"""Whole jobs for fault tests: started as a user would, watched through what they write, and cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.ranks import TIMEOUT_S, free_port, rank_environment, read_lines, tiny_config, write_config

_POLL_S = 0.05
_MARK = "PPAR_TEST_JOB"


class Job:
    """A process group that runs ``command``; its output goes to a file."""

    def __init__(self, command: Sequence[str], log: Path, **environment: str) -> None:
        self.log = log
        self.mark = uuid.uuid4().hex  # in the environment of all its processes
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                command,
                env=rank_environment() | environment | {_MARK: self.mark},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What the job has said so far."""
        return self.log.read_text(errors="replace")

    def family(self) -> list[psutil.Process]:
        """The job's processes that live, itself first."""
        try:
            parent = psutil.Process(self.process.pid)
            return [parent, *parent.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def alive(self) -> list[psutil.Process]:
        """All processes that came of the job and live, also those that have lost their parent."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def ranks(self) -> dict[int, psutil.Process]:
        """The trainer process of each rank."""
        found = {}
        for process in self.family():
            try:
                rank = process.environ().get("RANK")
                command = process.cmdline()
                parent = process.parent()
                is_worker = parent is not None and parent.environ().get("RANK") is not None
            except psutil.Error:
                continue
            if rank is not None and "ppar_dist" in command and not is_worker:
                found[int(rank)] = process
        return found

    def wait(self, seconds: float = TIMEOUT_S) -> int:
        """The exit code; a job that does not end in time fails the test with its output."""
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"did not end in {seconds} s:\n{self.output}") from None

    def wait_for(self, condition: Callable[[], Any], what: str) -> Any:
        """Poll until ``condition`` gives something; the job must live meanwhile."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            ended = self.process.poll() is not None  # what it did last counts, too
            found = condition()
            if found:
                return found
            assert not ended, f"ended before {what}:\n{self.output}"
            assert time.monotonic() < deadline, f"no {what} in {TIMEOUT_S} s:\n{self.output}"
            time.sleep(_POLL_S)

    def wait_for_step(self, run: Path, step: int) -> None:
        """Wait until the run has logged ``step``."""
        self.wait_for(lambda: last_step(run) >= step, f"step {step}")


@contextmanager
def job(command: Sequence[str], log: Path, **environment: str) -> Iterator[Job]:
    """A job that leaves no process behind, whatever the test does."""
    started = Job(command, log, **environment)
    try:
        yield started
    finally:
        for process in started.alive():
            with suppress(psutil.Error):
                process.kill()
        started.process.wait()


def last_step(run: Path) -> int:
    """The last step that a run has logged; 0 before the first."""
    path = run / "metrics" / "train.jsonl"
    try:
        steps = [record["step"] for record in read_lines(path)]
    except (OSError, ValueError):  # not there yet, or a line is being written
        return 0
    return max(steps, default=0)


def ours(*arguments: str) -> list[str]:
    """``ppar-dist ARGUMENTS``."""
    return [sys.executable, "-m", "ppar_dist", *arguments]


def deepspeed(ranks: int, *arguments: str, module: str = "ppar_dist") -> list[str]:
    """The DeepSpeed launcher as a user would call it."""
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(ranks)]
    return [
        *command,
        "--master_port",
        str(free_port()),
        "--no_local_rank",
        "--module",
        module,
        *arguments,
    ]


def torchrun(ranks: int, *arguments: str) -> list[str]:
    """torchrun as a user would call it."""
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(ranks)]
    return [*command, "--master-port", str(free_port()), "--module", "ppar_dist", *arguments]


def sabotaged(*arguments: str) -> list[str]:
    """``ppar-dist`` with sabotages (`tests.sabotage`), which come before its ARGUMENTS."""
    return [sys.executable, "-m", "tests.sabotage", *arguments]


def tiny_run(root: Path, folder: Path, **sections: dict[str, Any]) -> tuple[Path, str]:
    """A run folder of the tiny configuration and its configuration file."""
    run = folder / "run"
    run.parent.mkdir(parents=True, exist_ok=True)
    return run, str(write_config(folder / "config.yaml", tiny_config(root, run, **sections)))


def survivors(pids: Sequence[int]) -> list[int]:
    """Those processes that still run; a zombie waits for its parent only."""
    alive = []
    for pid in pids:
        try:
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                alive.append(pid)
        except psutil.NoSuchProcess:
            continue
    return alive


def all_gone(pids: Sequence[int], seconds: float = 30.0) -> bool:
    """Whether all processes end in time."""
    deadline = time.monotonic() + seconds
    while survivors(pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


def send(pid: int, number: signal.Signals) -> None:
    """Signal a process, if it still lives."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return

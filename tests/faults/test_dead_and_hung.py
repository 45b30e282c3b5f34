"""A rank dies, stops, hangs or fails: the job ends in time, says who it was, and goes on when restarted.

One run goes through all of it: each test starts the command again, which must resume from the newest whole
checkpoint of the start before.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ppar_dist import checkpoint
from tests.faults.jobs import Job, all_gone, deepspeed, job, sabotaged, tiny_run
from tests.ranks import TIMEOUT_S, start_ranks
from tests.sabotage.faults import REFUSAL

PEER_S, STALL_S = 3.0, 10.0
SLACK_S = 30.0  # for a busy machine
LAUNCHER_S = (
    30.0  # after which a launcher kills a rank that does not heed SIGTERM, as no stopped process does
)
SECTIONS = {
    "data": {"workers": 1},
    "train": {"steps": 100_000, "global_batch": 6, "log_every": 1},
    "checkpoint": {"every": 5},
    "faults": {"stall_s": STALL_S, "peer_s": PEER_S},
}
PHASES = r"(data|forward|backward|all-reduce|step|save)"


@dataclass(frozen=True)
class Run:
    """The run that goes on, and how it is started."""

    folder: Path
    config: str
    logs: Path

    @contextmanager
    def started(
        self, name: str, fault: str | None = None, rank: int = 0, user: bool = False
    ) -> Iterator[Job]:
        """Two ranks, of which one may have a fault to come; they have resumed from the newest checkpoint.

        They have published another one since, and have heard of each other's steps.
        """
        since, notes = self.newest(), self.logs / f"{name}-heard"
        notes.mkdir()
        words = [f"heard={notes}", *([f"fault={fault},{rank},{self.strike(name)}"] if fault else [])]
        command = sabotaged(*words, *self.train, "--nproc", "2")
        if user:  # has started the launcher
            command = deepspeed(2, *words, "ppar_dist", *self.train, module="tests.sabotage")
        with job(command, self.logs / f"{name}.log") as started:
            started.wait_for(lambda: step_of(self.newest()) > step_of(since), "a further checkpoint")
            started.wait_for(lambda: len(list(notes.iterdir())) == 2, "word of each other")
            if since is not None:
                assert f"resumed from {since}, the newest whole checkpoint" in started.output
            yield started

    @property
    def train(self) -> list[str]:
        return ["train", self.config]

    def strike(self, name: str) -> Path:
        """The file that lets a rank go wrong."""
        return self.logs / f"{name}-strike"

    def newest(self) -> Path | None:
        """The newest whole checkpoint."""
        return checkpoint.find_checkpoint(self.folder)


def step_of(found: Path | None) -> int:
    return 0 if found is None else checkpoint.step_of(found) or 0


@pytest.fixture(scope="module")
def run(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("run")
    folder, config = tiny_run(blocks, root, **SECTIONS)
    return Run(folder, config, root)


def assert_ends(
    started: Job, run: Run, code: int | None, began: float, bound_s: float, pids: list[int]
) -> None:
    """The job ends in time, no process is left, and every published checkpoint is whole."""
    found = started.wait()
    seconds = time.monotonic() - began
    print(f"{started.log.stem}: ended after {seconds:.1f} s")
    assert code is None or found == code, started.output
    assert all_gone(pids), started.output
    assert seconds < bound_s, started.output
    published = checkpoint.list_checkpoints(run.folder)
    assert [problem for folder in published for problem in checkpoint.verify(folder)] == []


def worker_of(rank: psutil.Process) -> psutil.Process:
    """The loader worker of a rank."""
    return next(child for child in rank.children() if child.cmdline() == rank.cmdline())


def kill_rank(rank: psutil.Process) -> int:
    rank.kill()
    return rank.pid


def stop_rank(rank: psutil.Process) -> int:
    rank.suspend()
    return rank.pid


def kill_worker(rank: psutil.Process) -> int:
    worker = worker_of(rank)
    worker.kill()
    return worker.pid


DIED = (
    rf"rank {{rank}} on \S+ \(127\.0\.0\.1, pid {{pid}}\) has died: .*; last heard of in {PHASES} at step \d+"
)
STOPPED = rf"rank 0 on 127\.0\.0\.1:\d+ cannot be reached .* in {PHASES} at step \d+, its process is stopped"
WORKER = r"rank {rank}: loader worker 0 \(pid {pid}\) was killed by SIGKILL"
FAULTS: dict[str, tuple[Callable[[psutil.Process], int], int, str]] = {
    "rank 0 is killed": (kill_rank, 0, DIED),
    "rank 1 is killed": (kill_rank, 1, DIED),
    "rank 0 is stopped": (stop_rank, 0, STOPPED),
    "the worker of rank 1 is killed": (kill_worker, 1, WORKER),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_job_ends_and_names_the_rank(run: Run, name: str) -> None:
    strike, rank, expected = FAULTS[name]
    with run.started(name) as started:
        pids = [process.pid for process in started.family()]
        began = time.monotonic()
        pid = strike(started.ranks()[rank])
        launcher_s = LAUNCHER_S if strike is stop_rank else 0.0
        assert_ends(started, run, 75, began, PEER_S + launcher_s + SLACK_S, pids)
        assert re.search(expected.format(rank=rank, pid=pid), started.output), started.output


WRONG = {
    "data": (1, 75, r"rank 1 on \S+ hangs in data \(.* s, limit faults.stall_s=10\); the others wait for it"),
    "forward": (0, 75, r"rank 0 on \S+ hangs in forward \(.* s, limit faults.stall_s=10\)"),
    "save": (1, 75, r"rank 1 on \S+ hangs in save \(.* s, limit faults.stall_s=10\)"),
    "error": (1, 70, r"rank 1 on \S+ fails: RuntimeError: a sum lacks a part"),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_rank_that_goes_wrong_by_itself_is_named_by_the_other(run: Run, fault: str) -> None:
    rank, code, expected = WRONG[fault]
    with run.started(fault, fault, rank) as started:
        pids = [process.pid for process in started.family()]
        run.strike(fault).touch()
        assert_ends(started, run, code, time.monotonic(), STALL_S + PEER_S + SLACK_S, pids)
        assert re.search(expected, started.output), started.output
        if code == 75:  # a hang: the stacks show where
            assert re.search(r"faults\.py\", line \d+ in hang\n", started.output), started.output


def test_ranks_on_several_hosts_end_with_the_code_of_the_one_that_refuses(run: Run) -> None:
    """No launcher sees both codes, so each rank must give the one that forbids a retry."""
    processes = start_ranks(run.train, 2, ["tests.sabotage", "fault=refusal,1"])
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [78, 78], outputs
    assert re.search(rf"ppar-dist.*: rank 1 on \S+ fails: UserError: {REFUSAL}\n", outputs[0]), outputs[0]
    assert f"ppar-dist: {REFUSAL}\n" in outputs[1]
    assert not any("Traceback" in output for output in outputs)


@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        ("gpu", 75, r"cpu failed: CUDA error: uncorrectable ECC error encountered; start again"),
        ("memory", 78, r"cpu out of memory: .*; a micro-batch of 3 is too large: lower train.micro_batch"),
    ],
)
def test_a_gpu_that_fails_is_named_with_its_rank_and_host(run: Run, fault: str, code: int, says: str) -> None:
    """Both ranks say so and end alike: hardware with the code that starts the job again."""
    processes = start_ranks(run.train, 2, ["tests.sabotage", f"fault={fault},1"])
    try:
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [code, code], outputs
    for output in outputs:
        assert re.search(rf"ppar-dist.*: rank 1 on \S+ fails: {says}", output), output


def test_under_a_launcher_of_the_user_nobody_is_left_either(run: Run) -> None:
    with run.started("launcher", user=True) as started:
        pids = [process.pid for process in started.family()]
        began = time.monotonic()
        pid = kill_rank(started.ranks()[1])
        assert_ends(started, run, None, began, PEER_S + 2 * SLACK_S, pids)
        assert re.search(DIED.format(rank=1, pid=pid), started.output), started.output


def test_the_run_that_went_through_all_this_goes_on(run: Run) -> None:
    with run.started("last") as started:
        pids = [process.pid for process in started.family()]
        began = time.monotonic()
        started.process.send_signal(signal.SIGTERM)
        assert_ends(started, run, 75, began, 2 * SLACK_S, pids)
    assert "Traceback" not in started.output
    names = [path.name for path in (run.folder / "checkpoints").iterdir()]
    assert not [name for name in names if name.startswith(".")]

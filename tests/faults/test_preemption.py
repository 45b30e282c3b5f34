"""Signals under every launcher: all ranks stop after the same step, with a whole checkpoint and no orphan."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from ppar_dist import checkpoint
from ppar_dist.processes.signals import SAME_REQUEST_S
from tests.faults.jobs import (
    Job,
    all_gone,
    deepspeed,
    job,
    last_step,
    ours,
    sabotaged,
    send,
    survivors,
    tiny_run,
    torchrun,
)
from tests.ranks import TIMEOUT_S, read_lines, tiny_config
from tests.sabotage.pace import Pace

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
APART_S = SAME_REQUEST_S + 0.5
INHERITING = f"""
import ctypes, runpy
ctypes.CDLL(None).prctl({PR_SET_CHILD_SUBREAPER}, 1, 0, 0, 0)
runpy.run_module("ppar_dist", run_name="__main__")
"""
LONG = {"train": {"steps": 100_000, "global_batch": 6, "log_every": 1}}


def assert_stopped_whole(started: Job, run: Path, pids: list[int]) -> None:
    """A checkpoint of the last step, no partial file, no process left."""
    assert all_gone(pids), started.output
    newest = checkpoint.find_checkpoint(run)
    assert newest is not None, started.output
    state = checkpoint.read_state(newest)
    assert state["step"] == last_step(run)
    assert state["samples_seen"] == 6 * state["step"]
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    events = read_lines(run / "metrics" / "events.jsonl")
    assert events[-1]["kind"] == "stopped"
    assert events[-1]["step"] == state["step"]


@pytest.mark.parametrize(
    ("launcher", "number", "code"),
    [
        ("deepspeed", signal.SIGTERM, 75),
        ("deepspeed", signal.SIGUSR1, 75),
        ("deepspeed", signal.SIGINT, 130),
        ("deepspeed", signal.SIGHUP, 75),
        ("torchrun", signal.SIGUSR1, 75),
        ("torchrun", signal.SIGINT, 130),
    ],
)
def test_a_signal_to_our_command(
    blocks: Path, tmp_path: Path, launcher: str, number: signal.Signals, code: int
) -> None:
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2", "--launcher", launcher), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        assert len(started.ranks()) == 2
        started.process.send_signal(number)
        assert started.wait() == code, started.output
        assert_stopped_whole(started, run, pids)
        assert launcher == "torchrun" or "Traceback" not in started.output  # torchrun prints one of its own


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("command", [deepspeed, torchrun])
def test_a_signal_to_a_launcher_that_the_user_started(
    blocks: Path, tmp_path: Path, command: Callable[..., list[str]], number: signal.Signals
) -> None:
    """The launcher may end with a code of its own; the ranks must not be orphaned nor cut short."""
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(command(2, "train", config), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        started.process.send_signal(number)
        started.wait()
        assert_stopped_whole(started, run, pids)


def test_a_signal_to_a_single_rank_stops_all(blocks: Path, tmp_path: Path) -> None:
    rank = 1
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        send(started.ranks()[rank].pid, signal.SIGUSR1)
        assert started.wait() == 75, started.output
        assert_stopped_whole(started, run, pids)
        assert f"SIGUSR1 at rank {rank}" in started.output


def test_a_killed_command_leaves_nothing_behind(blocks: Path, tmp_path: Path) -> None:
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        send(started.process.pid, signal.SIGKILL)
        started.wait()
        assert_stopped_whole(started, run, pids)


def test_a_killed_launcher_leaves_no_rank_behind(blocks: Path, tmp_path: Path) -> None:
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        ranks = list(started.ranks().values())
        pids = [process.pid for process in started.family()]
        send(ranks[0].ppid(), signal.SIGKILL)
        assert started.wait() == 75, started.output
        assert_stopped_whole(started, run, pids)


def launcher_of(started: Job) -> psutil.Process | None:
    """DeepSpeed's launcher, once it is there; libraries run programs of their own while they are loaded."""
    for process in started.family():
        with suppress(psutil.Error):
            if "deepspeed.launcher.launch" in process.cmdline():
                return process
    return None


@pytest.mark.parametrize("victim", ["command", "launcher"])
def test_a_kill_before_ranks_listen_leaves_nothing_behind(blocks: Path, tmp_path: Path, victim: str) -> None:
    """They find out later, when what was above them is not an ancestor any more.

    The command inherits the ranks of a launcher that was killed, as process 1 of a container would.
    """
    patient = {"grace_s": 10 * TIMEOUT_S}  # our command would else end them all in time
    _, config = tiny_run(blocks, tmp_path, **LONG, faults=patient)
    command = [sys.executable, "-c", INHERITING, "train", config, "--nproc", "2"]
    with job(command, tmp_path / "log") as started:
        launcher = started.wait_for(lambda: launcher_of(started), "launcher")
        if victim == "launcher":
            started.wait_for(lambda: len(started.ranks()) == 2, "ranks")
        send((launcher if victim == "launcher" else started.process).pid, signal.SIGKILL)
        deadline = time.monotonic() + TIMEOUT_S
        while started.alive():
            assert time.monotonic() < deadline, started.output
            time.sleep(0.2)


def test_a_signal_while_ranks_are_being_started_ends_the_job(blocks: Path, tmp_path: Path) -> None:
    _, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "log") as started:
        started.wait_for(lambda: launcher_of(started), "launcher")
        pids = [process.pid for process in started.family()]
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert all_gone(pids)


def stop_after_three_steps(run: Path, config: str, folder: Path) -> None:
    hold = Pace(folder / "hold", step=3)
    command = sabotaged(hold.hold, "train", config, "--nproc", "1")
    with job(command, folder / "log") as started:
        started.wait_for_step(run, 3)
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert_stopped_whole(started, run, [started.process.pid])


def test_a_rank_alone_and_the_run_that_follows(blocks: Path, tmp_path: Path) -> None:
    """The last steps of a stopped run are done by the next: it ends as one that was never stopped."""
    sections = {"train": {"steps": 20, "global_batch": 6, "log_every": 1}}
    run, config = tiny_run(blocks, tmp_path, **sections)
    stop_after_three_steps(run, config, tmp_path)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log2") as started:
        assert started.wait() == 0, started.output
    assert [record["step"] for record in read_lines(run / "metrics" / "train.jsonl")] == list(range(1, 21))
    assert "resumed" in (run / "metrics" / "events.jsonl").read_text()
    assert "from step-" in (run / "report.html").read_text()


def test_an_evaluation_that_a_signal_prevented_is_made_up_for(blocks: Path, tmp_path: Path) -> None:
    """Every step is due for one; the step after which the run was stopped has its own as well."""
    data = {**tiny_config(blocks, tmp_path)["data"], "holdout": 0.25}
    sections = {"train": {"steps": 12, "global_batch": 6, "log_every": 1, "eval_every": 1}, "data": data}
    run, config = tiny_run(blocks, tmp_path, **sections)
    stop_after_three_steps(run, config, tmp_path)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log2") as started:
        assert started.wait() == 0, started.output
    assert [record["step"] for record in read_lines(run / "metrics" / "eval.jsonl")] == list(range(1, 13))
    newest = checkpoint.find_checkpoint(run)
    assert newest is not None
    assert checkpoint.read_state(newest)["evaluated_step"] == 12


HANG = """
import sys, time
from ppar_dist.training import trainer
from ppar_dist.cli.parser import main
from pathlib import Path
def hang(self, step):
    Path(sys.argv[1]).touch()
    time.sleep(600)
trainer.Trainer._apply = hang
sys.exit(main(sys.argv[2:]))
"""


def send_until_it_ends(started: Job) -> None:
    """Signals so far apart that one which was late to arrive is not taken for the same as the next."""
    for _ in range(20):
        started.process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            started.process.wait(APART_S)
            return


@pytest.mark.parametrize("second", [True, False], ids=["a second signal", "the deadline"])
def test_the_exit_is_forced(blocks: Path, tmp_path: Path, second: bool) -> None:
    """A rank that never reaches a step boundary: the previous checkpoint stays, the code says resume."""
    grace = {"grace_s": 600.0 if second else 3.0}
    run, config = tiny_run(blocks, tmp_path, **LONG, faults=grace)
    note = tmp_path / "hangs"
    command = [*ours()[:1], "-c", HANG, str(note), "train", config, "--nproc", "1"]
    with job(command, tmp_path / "log") as started:
        started.wait_for(note.exists, "a hang")
        started.process.send_signal(signal.SIGTERM)
        if second:
            time.sleep(APART_S)
            assert survivors([started.process.pid]), "one signal is not a second one"
            send_until_it_ends(started)
        assert started.wait() == 75, started.output
    expected = "a second signal, SIGTERM" if second else "faults.grace_s=3"
    assert expected in started.output
    assert checkpoint.find_checkpoint(run) is None  # it hung in its first step


@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal", "nohup"])
def test_a_hangup_of_one_rank_is_a_request_unless_it_is_ignored(
    blocks: Path, tmp_path: Path, ignored: bool
) -> None:
    run, config = tiny_run(blocks, tmp_path, **LONG)
    command = [*(["nohup"] if ignored else []), *ours("train", config, "--nproc", "2")]
    with job(command, tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        started.ranks()[1].send_signal(signal.SIGHUP)
        if ignored:
            step = last_step(run)
            started.wait_for_step(run, step + 3)
            started.ranks()[1].send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert_stopped_whole(started, run, pids)

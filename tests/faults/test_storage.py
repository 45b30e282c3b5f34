"""Whole jobs on storage that fills up, turns read-only, vanishes, or loses its writer within a write."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ppar_dist import checkpoint
from ppar_dist.files.jsonl import records
from ppar_dist.run.audit import audit
from tests.faults.jobs import Job, job, ours, sabotaged, tiny_run
from tests.ranks import TIMEOUT_S, read_lines
from tests.sabotage.pace import Pace

EVERY = 4
TRAIN = {"steps": 100_000, "global_batch": 6, "log_every": 1, "ledger": True}
LONG: dict[str, Any] = {"train": TRAIN, "checkpoint": {"every": EVERY}}


def mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        pytest.skip(f"no file system may be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=32m", "tmpfs", str(folder))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def fill(folder: Path) -> None:
    """Leave not a page free."""
    with suppress(OSError), (folder / "ballast").open("ab", buffering=0) as ballast:
        while ballast.write(b"\0" * 65536) == 65536:
            pass


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """``folder`` cannot be written by whoever opens a file there now."""
    mount("--bind", str(folder), str(folder))
    try:
        mount("-o", "remount,ro,bind", str(folder))
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, timeout=60)


def wait_while_full(started: Job, folder: Path, condition: Callable[[], bool]) -> None:
    """Wait for ``condition`` on a disk that is full again at once whatever is deleted."""

    def look() -> bool:
        fill(folder)
        return condition()

    started.wait_for(look, "a failure on a full disk")


def newest(run: Path) -> int:
    """The step of the newest whole checkpoint; 0: there is none."""
    found = checkpoint.find_checkpoint(run)
    return 0 if found is None else checkpoint.step_of(found) or 0


def last_step(run: Path) -> int:
    """The last step that a run has logged, whatever lines a full disk has cut off; 0 before the first."""
    with suppress(OSError):
        found = records(run / "metrics" / "train.jsonl")
        return max((record["step"] for record in found if record is not None), default=0)
    return 0


def wait_for_checkpoint(started: Job, run: Path, after: int) -> int:
    """Until there is a checkpoint of a later step than ``after``; returns that step."""

    def published() -> int:
        return max((checkpoint.step_of(each) or 0 for each in checkpoint.list_checkpoints(run)), default=0)

    started.wait_for(lambda: published() > after, f"checkpoint after step {after}")
    return published()


def failures(started: Job) -> float:
    """ppar_checkpoint_failures_total, as the job's endpoint says."""
    url = re.search(r"^metrics: (\S+)", started.output, re.MULTILINE)
    assert url is not None, started.output
    with urllib.request.urlopen(url[1], timeout=60) as reply:
        text = reply.read().decode()
    value = re.search(r"^ppar_checkpoint_failures_total (\S+)", text, re.MULTILINE)
    assert value is not None, text
    return float(value[1])


def test_a_full_disk_costs_checkpoints_and_nothing_else(blocks: Path, small: Path, tmp_path: Path) -> None:
    """It fills up and is freed while the job trains; it fills up again, and the job is asked to stop."""
    run, config = tiny_run(blocks, small, monitoring={"enabled": True, "port": 0}, **LONG)
    command = ours("train", config, "--nproc", "2")
    with job(command, tmp_path / "log") as started:
        before = wait_for_checkpoint(started, run, 0)
        wait_while_full(started, small, lambda: started.output.count("checkpoint failed") > 1)
        wait_while_full(started, small, lambda: "records are lost" in started.output)
        assert failures(started) >= 2
        whole = newest(run)
        assert whole >= before
        assert "No space left" in started.output
        assert "training continues" in started.output
        (small / "ballast").unlink()
        wait_for_checkpoint(started, run, whole)
        started.wait_for(lambda: "can be written again" in started.output, "records")
        seen = last_step(run)
        started.wait_for(lambda: last_step(run) > seen + 2, "further records")
        failed = started.output.count("checkpoint failed")
        wait_while_full(started, small, lambda: started.output.count("checkpoint failed") > failed)
        whole = newest(run)
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert "the run ends with the checkpoint before" in started.output
        assert "Traceback" not in started.output
        assert newest(run) == whole
    (small / "ballast").unlink()
    with job(command, tmp_path / "log2") as started:
        wait_for_checkpoint(started, run, whole)
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert f"resumed from {run}/checkpoints/{checkpoint.checkpoint_name(whole)}" in started.output
    found = audit(run)
    assert (found.problems, found.positions, found.changed_repeats) == ([], 6 * newest(run), 0)
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]


def test_the_last_checkpoint_cannot_be_written(blocks: Path, small: Path, tmp_path: Path) -> None:
    """The job says so in a line and asks to be run again; the same command then does the lost steps."""
    steps = 30
    run, config = tiny_run(blocks, small, train=TRAIN | {"steps": steps})
    hold = Pace(tmp_path / "hold", step=2)
    command = sabotaged(hold.hold, "train", config, "--nproc", "1")
    with job(command, tmp_path / "log") as started:
        started.wait_for_step(run, 2)
        started.process.send_signal(signal.SIGUSR1)
        assert started.wait() == 75, started.output
    whole = newest(run)
    assert 0 < whole < steps
    hold.set(whole)
    hold.forget()
    with job(sabotaged(hold.hold, "train", config, "--nproc", "2"), tmp_path / "log2") as started:
        started.wait_for(hold.standing, "a rank before its first step")  # its files are open: no refusal
        fill(small)
        hold.release()
        assert started.wait() == 75, started.output
        last = [line for line in started.output.splitlines() if line.startswith("ppar-dist:")]
        expected = f"ppar-dist: checkpoint {checkpoint.checkpoint_name(steps)} was not written: "
        assert any(line.startswith(expected) and "No space left" in line for line in last), started.output
        assert "Traceback" not in started.output
    assert newest(run) == whole
    (small / "ballast").unlink()
    with job(command, tmp_path / "log3") as started:
        assert started.wait() == 0, started.output
    assert newest(run) == steps
    assert (audit(run).problems, audit(run).positions) == ([], 6 * steps)


def test_a_folder_that_turns_read_only_and_one_that_is_deleted(blocks: Path, tmp_path: Path) -> None:
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log") as started:
        wait_for_checkpoint(started, run, 0)
        with read_only(run):
            started.wait_for(lambda: "checkpoint failed" in started.output, "a failed checkpoint")
            assert "Read-only file system" in started.output
            whole = newest(run)
            assert whole > 0
        wait_for_checkpoint(started, run, whole)
        seen = last_step(run)
        started.wait_for(lambda: last_step(run) > seen, "further records")
        kinds = [event["kind"] for event in read_lines(run / "metrics" / "events.jsonl")]
        assert "checkpoint failed" in kinds

        gone, deleted_at = tmp_path / "gone", newest(run)
        run.rename(gone)  # at once, so that nothing is deleted that was created again
        while gone.exists():  # files are made meanwhile
            shutil.rmtree(gone, ignore_errors=True)
        started.wait_for(lambda: "was deleted; recreated empty" in started.output, "a folder")
        wait_for_checkpoint(started, run, deleted_at)
        started.wait_for(lambda: last_step(run) > 0, "metrics")
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert "Traceback" not in started.output
    state = checkpoint.read_state(checkpoint.resolve(run))
    assert state["step"] == newest(run) == last_step(run)
    assert (run / "config.yaml").exists()
    assert read_lines(run / "metrics" / "events.jsonl")[-1]["kind"] == "stopped"
    assert any("step 1 was not noted by all 1 ranks" in problem for problem in audit(run).problems)


def test_killed_in_the_middle_of_writing(blocks: Path, tmp_path: Path) -> None:
    """Each time a whole checkpoint is found again, and at the end nothing of the cut-off writes is left."""
    run, config = tiny_run(blocks, tmp_path, **LONG)
    command, standing = ours("train", config, "--nproc", "1"), 0
    for number in range(3):
        with job(command, tmp_path / f"log{number}") as started:
            if standing:
                wait_for_checkpoint(started, run, standing)
            wait_for_a_write(started, run)
            started.process.kill()
            started.process.wait()
        found = newest(run)
        assert found >= standing
        assert found % EVERY == 0
        standing = found
    with job(command, tmp_path / "last") as started:
        wait_for_checkpoint(started, run, standing)
        started.process.send_signal(signal.SIGTERM)
        assert started.wait() == 75, started.output
        if standing:
            assert f"{checkpoint.checkpoint_name(standing)}, the newest whole one" in started.output
    assert not [path.name for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    found_audit = audit(run)
    assert (found_audit.problems, found_audit.changed_repeats) == ([], 0)
    assert found_audit.positions == 6 * newest(run)


def wait_for_a_write(started: Job, run: Path) -> None:
    """Until files of a checkpoint are being written; at the latest a moment before they were."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        with suppress(OSError):
            if any(name.startswith(".writing-step-") for name in os.listdir(run / "checkpoints")):
                return
        assert started.process.poll() is None, started.output
    raise AssertionError(f"no checkpoint is written:\n{started.output}")

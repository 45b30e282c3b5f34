"""Schedulers signal every process of a job, the launcher as well: only the ranks and our command obey."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults.jobs import job, last_step, ours, send, tiny_run
from tests.faults.test_preemption import LONG, assert_stopped_whole


@pytest.mark.parametrize("launcher", ["deepspeed", "torchrun"])
def test_a_launcher_that_is_signalled_sets_its_ranks_no_time(
    blocks: Path, tmp_path: Path, launcher: str
) -> None:
    """Left to itself it would pass the signal on and kill ranks that have not ended 30 s later."""
    run, config = tiny_run(blocks, tmp_path, **LONG)
    with job(ours("train", config, "--nproc", "2", "--launcher", launcher), tmp_path / "log") as started:
        started.wait_for_step(run, 3)
        pids = [process.pid for process in started.family()]
        send(started.ranks()[0].ppid(), signal.SIGTERM)
        started.wait_for_step(run, last_step(run) + 5)
        assert "stopped" not in (run / "metrics" / "events.jsonl").read_text()
        for pid in pids:
            send(pid, signal.SIGTERM)
        assert started.wait() == 75, started.output
        assert_stopped_whole(started, run, pids)

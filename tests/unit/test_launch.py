"""The launcher's process group: it ends as a whole, and the exit code says why."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppar_dist.demo import _even_ranks
from tests.ranks import rank_environment

# Like DeepSpeed's runner: a process that dies of a signal and leaves its child behind.
_RUNNER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
_PARENT = """
import os, sys
from ppar_dist.launch import _run_group
sys.exit(_run_group([sys.executable, "-c", *sys.argv[1:]], os.environ))
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _PARENT, *arguments], env=rank_environment())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_the_whole_group(tmp_path: Path, number: signal.Signals, code: int) -> None:
    note = tmp_path / "pid"
    parent = start(_RUNNER, str(note))
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    parent.send_signal(number)
    assert parent.wait(60) == code
    assert not _alive(int(note.read_text()))


@pytest.mark.parametrize("code", [0, 78])
def test_the_exit_code_is_passed_on(code: int) -> None:
    assert start(f"raise SystemExit({code})").wait(60) == code


def test_the_demo_takes_as_many_ranks_as_share_the_batch_evenly() -> None:
    assert [_even_ranks(gpus, 8) for gpus in (1, 2, 3, 6, 8, 16)] == [1, 2, 2, 4, 8, 8]


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return state != "Z"  # an orphan may wait for init to collect it

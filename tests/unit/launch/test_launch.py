"""The launcher's process group: it ends as a whole, and its exit code is computed from the ranks' codes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ppar_dist.cli.demo import _even_ranks
from ppar_dist.launch.front import job_code
from tests.ranks import rank_environment

# Like DeepSpeed's runner: a process that dies of a signal and leaves its child behind.
_RUNNER = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
child.wait()
"""
# A rank as the launcher would start it: listens, and ends with a code when it is asked to.
_RANK = """
import os, signal, sys, time
from ppar_dist.launch.rank import note_exit, note_start
os.environ["RANK"] = "0"
def end(number, frame):
    note_exit(75)
    sys.exit(75)
signal.signal(signal.SIGUSR1, end)
note_start()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(600)
"""
# Counts the requests that it hears until a line comes.
_COUNTING = """
import os, signal, sys, time
from ppar_dist.launch.rank import note_exit, note_start
os.environ |= dict(RANK="0", WORLD_SIZE="1")
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
note_start()
open(sys.argv[1], "w").write(str(os.getpid()))
time.sleep(3)
note_exit(60 + len(heard))
"""
# Like torchrun's agent, killed before its ranks listen: each has a session of its own.
_KILLED = """
import os, signal, subprocess, sys
late = [sys.executable, "-c", "import time; time.sleep(2)"]
child = subprocess.Popen(late, start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
os.kill(os.getpid(), signal.SIGKILL)
"""
_PARENT = """
import os, sys, tempfile
from pathlib import Path
from ppar_dist.launch import front
with tempfile.TemporaryDirectory() as notes:
    environment = {**os.environ, "PPAR_EXIT_NOTES": notes}
    group = front._LauncherGroup(Path(notes), [0], 5.0)
    sys.exit(group.run([sys.executable, "-c", *sys.argv[1:]], environment))
"""


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", _PARENT, *arguments], env=rank_environment())


def pid_in(note: Path) -> int:
    deadline = time.monotonic() + 60
    while not (note.exists() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(note.read_text())


@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)]
)
@pytest.mark.parametrize("script", [_RUNNER, _RANK], ids=["before the ranks listen", "listening ranks"])
def test_a_signal_ends_the_whole_group(
    tmp_path: Path, script: str, number: signal.Signals, code: int
) -> None:
    note = tmp_path / "pid"
    parent = start(script, str(note))
    child = pid_in(note)
    parent.send_signal(number)
    assert parent.wait(60) == code
    assert not _alive(child)


@pytest.mark.process
def test_a_terminal_that_is_closed_after_a_request_asks_no_second_time(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    parent = start(_COUNTING, str(note))
    pid_in(note)
    for number in (signal.SIGTERM, signal.SIGHUP):
        parent.send_signal(number)
        time.sleep(0.5)
    assert parent.wait(60) == 61


@pytest.mark.process
def test_ranks_of_a_killed_launcher_are_waited_for_wherever_they_are(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    assert start(_KILLED, str(note)).wait(60) == 75
    assert not _alive(pid_in(note))


@pytest.mark.process
@pytest.mark.parametrize("code", [0, 70, 75, 78])
def test_the_exit_code_of_a_rank_is_the_jobs(code: int) -> None:
    script = (
        f"import os; os.environ['RANK'] = '0'; from ppar_dist.launch.rank import note_exit; note_exit({code})"
    )
    assert start(script).wait(60) == code  # and not the launcher's own, 0


@pytest.mark.process
def test_a_launcher_that_fails_by_itself_is_an_internal_error() -> None:
    assert start("raise SystemExit(1)").wait(60) == 70


@pytest.mark.parametrize(
    ("codes", "launcher", "job"),
    [
        ([0, 0], 0, 0),
        ([75, 75], 1, 75),
        ([75, None], 75, 75),  # a rank was killed, the other ended because of it
        ([75, 70], 75, 70),
        ([78, 70], 70, 78),
        ([0, 75], 75, 75),
        ([None, None], -9, 75),
        ([None, None], 247, 75),  # DeepSpeed's launcher of ranks that were killed
        ([None, None], 78, 78),  # a note could not be written
        ([None, None], 1, 70),
    ],
)
def test_a_job_ends_with_the_code_that_no_retry_cures(
    codes: list[int | None], launcher: int, job: int
) -> None:
    assert job_code(codes, launcher) == job


def test_ranks_that_listened_count_as_killed_whatever_the_launchers_code() -> None:
    assert job_code([None, None], 1, listened=True) == 75


def test_the_demo_takes_as_many_ranks_as_share_the_batch_evenly() -> None:
    assert [_even_ranks(gpus, 8) for gpus in (1, 2, 3, 6, 8, 16)] == [1, 2, 2, 4, 8, 8]


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"  # an orphan may wait for init to collect it

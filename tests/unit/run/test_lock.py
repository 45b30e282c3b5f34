"""At most one job in a run's folder: a living holder keeps it, a dead one does not block."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import IO

import pytest

from ppar_dist.errors import InUse
from ppar_dist.processes import proc
from ppar_dist.run.holder import Holder, read_holder
from ppar_dist.run.lock import LOOK_S, RunLock, write_in_place
from tests.ranks import TIMEOUT_S, rank_environment

pytestmark = pytest.mark.process

NAME = "run.lock"
SILENT_S = 1.5
LONG_S = 8.0  # for a holder to show that it lives, on a machine that may stall for seconds
# Holds the lock until it is told to end; `machine` as another machine's processes would have it.
_HOLDER = """
import os, sys, time
from pathlib import Path
from ppar_dist.processes import proc
from ppar_dist.run.lock import RunLock
folder, machine = Path(sys.argv[1]), sys.argv[2]
if machine:
    proc.machine = lambda: machine
lock = RunLock(folder, float(sys.argv[3]), "Slurm job 17")
def lost(text):
    print(text, flush=True)
    os._exit(78)
lock.on_lost = lost
while not lock.try_acquire():
    time.sleep(0.01)
print("held", flush=True)
sys.stdin.read()
lock.close()
"""
# Several of them at once, when the file comes; then it holds the folder, if it has got it.
_TAKER = """
import os, sys, time
from pathlib import Path
from ppar_dist.errors import InUse
from ppar_dist.run.lock import RunLock
folder, silent_s, go = Path(sys.argv[1]), float(sys.argv[2]), sys.argv[3]
lock = RunLock(folder, silent_s)
print("ready", flush=True)
while not os.path.exists(go):
    pass
try:
    while not lock.try_acquire():
        print("waiting", flush=True)
        time.sleep(0.2)
    print("taken", flush=True)
except InUse:
    print("refused", flush=True)
sys.stdin.read()
"""
Start = Callable[..., "subprocess.Popen[str]"]


def acquire(lock: RunLock) -> None:
    """As a job does."""
    while not lock.try_acquire():
        time.sleep(LOOK_S)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def begin(
        machine: str = "", silent_s: float = SILENT_S, folder: Path = tmp_path
    ) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _HOLDER, str(folder), machine, str(silent_s)]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=rank_environment()))
        assert started[-1].stdout is not None
        assert started[-1].stdout.readline() == "held\n"
        return started[-1]

    yield begin
    for holder in started:
        holder.kill()
        holder.wait()


def test_a_living_process_of_this_machine_keeps_its_folder_and_is_named(tmp_path: Path, start: Start) -> None:
    holder = start()
    message = (
        rf"{re.escape(str(tmp_path))} is in use by Slurm job 17, process {holder.pid} on \S+, "
        r"since [\d :-]+; end that job, or give another run.dir"
    )
    with pytest.raises(InUse, match=message):
        acquire(RunLock(tmp_path, SILENT_S))


def test_a_living_process_that_ends_meanwhile_is_waited_for(
    tmp_path: Path, start: Start, caplog: pytest.LogCaptureFixture
) -> None:
    holder = start()
    with closing(RunLock(tmp_path, TIMEOUT_S)) as lock:
        assert not lock.try_acquire()
        assert not lock.try_acquire()
        assert holder.stdin is not None
        holder.stdin.close()
        acquire(lock)
    (said,) = caplog.messages  # once
    assert re.search(r"run.lock is held by Slurm job 17, .*; waiting \d+ s for its end", said)


def test_what_is_given_back_can_be_taken(tmp_path: Path, start: Start) -> None:
    holder = start()
    holder.communicate(timeout=TIMEOUT_S)
    assert list(tmp_path.iterdir()) == []
    with closing(RunLock(tmp_path, SILENT_S)) as lock:
        assert lock.try_acquire()
        assert lock.try_acquire()  # a second time changes nothing
        found = read_holder(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
    assert list(tmp_path.iterdir()) == []


def test_a_process_that_was_killed_here_does_not_block_for_a_moment(tmp_path: Path, start: Start) -> None:
    holder = start()
    holder.kill()
    holder.wait()
    with closing(RunLock(tmp_path, 1000.0)) as lock:
        assert lock.try_acquire()


def test_a_living_job_on_another_machine_keeps_its_folder(tmp_path: Path, start: Start) -> None:
    start("another machine")
    with pytest.raises(InUse, match="in use by Slurm job 17"):
        acquire(RunLock(tmp_path, LONG_S))


def test_a_dead_job_on_another_machine_is_taken_over_when_it_stays_silent(
    tmp_path: Path, start: Start
) -> None:
    start("another machine").kill()
    began = time.monotonic()
    with closing(RunLock(tmp_path, SILENT_S)) as lock:
        acquire(lock)
        assert time.monotonic() - began >= SILENT_S


def test_a_job_that_was_taken_for_dead_gives_way_when_it_wakes(tmp_path: Path, start: Start) -> None:
    holder = start("another machine")
    holder.send_signal(signal.SIGSTOP)
    with closing(RunLock(tmp_path, SILENT_S)) as lock:
        acquire(lock)
        mine = read_holder(tmp_path)
        holder.send_signal(signal.SIGCONT)
        assert holder.wait(TIMEOUT_S) == 78
        assert holder.stdout is not None
        assert f"is in use by process {os.getpid()} on" in holder.stdout.read()
        now = read_holder(tmp_path)
        assert mine is not None
        assert now is not None
        assert now.id == mine.id  # the write of the other had no effect


@contextmanager
def takers(folder: Path, number: int, silent_s: float, go: Path) -> Iterator[list[IO[str]]]:
    """The words of so many processes that are about to want a folder."""
    command = [sys.executable, "-c", _TAKER, str(folder), str(silent_s), str(go)]
    pipe = subprocess.PIPE
    started = [
        subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=rank_environment())
        for _ in range(number)
    ]
    try:
        words = [taker.stdout for taker in started if taker.stdout is not None]
        assert [said.readline() for said in words] == ["ready\n"] * number
        yield words
    finally:
        for taker in started:
            taker.kill()
            taker.communicate()


def last_word(said: IO[str]) -> str:
    return next((line for line in iter(said.readline, "") if line != "waiting\n"), "nothing")


@pytest.mark.parametrize("attempt", range(3))
def test_of_many_that_want_a_dead_jobs_folder_one_gets_it(tmp_path: Path, start: Start, attempt: int) -> None:
    folder, go = tmp_path / "run", tmp_path / "go"
    folder.mkdir()
    dead = start(folder=folder)
    dead.kill()
    dead.wait()
    with takers(folder, 6, SILENT_S, go) as words:
        go.touch()
        assert sorted(map(last_word, words)) == ["refused\n"] * 5 + ["taken\n"]


def test_the_lock_of_a_faster_one_is_left_alone(
    tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Taken away by one that had seen the dead job's, it would leave a moment for a third."""
    dead = start()
    dead.kill()
    dead.wait()
    slower, faster, third = (RunLock(tmp_path, SILENT_S) for _ in range(3))
    held: list[RunLock] = []

    def want(lock: RunLock) -> None:
        with suppress(InUse):
            acquire(lock)
            held.append(lock)

    rename, link = Path.rename, os.link
    other = threading.Thread(target=want, args=(faster,))

    def rename_late(path: Path, target: Path) -> None:
        monkeypatch.setattr(Path, "rename", rename)
        other.start()
        other.join(SILENT_S / 2)
        rename(path, target)

    def link_late(path: Path, target: Path) -> None:
        if ".dead." in path.name:  # the lock of the faster one, taken away and about to be put back
            want(third)
        link(path, target)

    monkeypatch.setattr(Path, "rename", rename_late)
    monkeypatch.setattr(os, "link", link_late)
    want(slower)
    other.join()
    assert len(held) == 1
    held[0].close()
    assert not list(tmp_path.iterdir())


def test_one_that_dies_while_it_takes_a_folder_over_blocks_no_job(tmp_path: Path, start: Start) -> None:
    dead = start()
    dead.kill()
    dead.wait()
    (tmp_path / ".run.lock.takeover").write_bytes((tmp_path / NAME).read_bytes())
    with closing(RunLock(tmp_path, TIMEOUT_S)) as lock:
        acquire(lock)
        assert os.listdir(tmp_path) == [NAME]


def test_a_lock_may_go_while_it_is_being_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link, there = os.link, [True]

    def link_beside_one_that_goes(one: Path, other: Path) -> None:
        if there:
            raise FileExistsError(there.pop())
        link(one, other)

    monkeypatch.setattr(os, "link", link_beside_one_that_goes)
    with closing(RunLock(tmp_path, SILENT_S)) as lock:
        acquire(lock)
        assert read_holder(tmp_path) is not None


def test_of_two_that_wait_for_a_job_to_die_one_gets_its_folder(tmp_path: Path, start: Start) -> None:
    """In several folders at once, as it takes its time."""
    go, folders = tmp_path / "go", [tmp_path / f"run-{number}" for number in range(3)]
    for folder in folders:
        folder.mkdir()
    holders = [start(folder=folder) for folder in folders]
    with ExitStack() as stack:
        pairs = [stack.enter_context(takers(folder, 2, 2.5 * LONG_S, go)) for folder in folders]
        go.touch()
        for words in pairs:
            assert [said.readline() for said in words] == ["waiting\n"] * 2
        for holder in holders:
            holder.kill()
            holder.wait()
        for words in pairs:
            assert sorted(map(last_word, words)) == ["refused\n", "taken\n"]


def test_a_job_that_dies_after_a_beat_was_seen_is_taken_over_all_the_same(
    tmp_path: Path, start: Start
) -> None:
    holder = start("another machine")

    with closing(RunLock(tmp_path, LONG_S)) as lock:  # in the first half of which it dies
        assert not lock.try_acquire()
        seen = (tmp_path / NAME).read_text()
        while (tmp_path / NAME).read_text() == seen:
            time.sleep(0.01)
        holder.kill()
        acquire(lock)
        now = read_holder(tmp_path)
        assert now is not None
        assert now.pid == os.getpid()


def test_a_process_that_proc_hides_is_not_taken_for_dead() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a /proc that hides processes and to become another user")
    script = """
import os, sys
from ppar_dist.processes import proc
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
print(proc.look(1, 7).value)
"""
    mount = 'mount -t proc -o hidepid=2 proc /proc && exec "$@"'
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable, "-c", script],
        env=rank_environment(),
        text=True,
        capture_output=True,
        check=False,
    )
    assert done.stdout == "unknown\n", done.stderr


def test_a_file_that_is_not_a_lock_is_taken_over_when_it_does_not_change(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / NAME).write_bytes(b"\xff\x00not a lock")
    with closing(RunLock(tmp_path, 0.5)) as lock:
        acquire(lock)
        assert read_holder(tmp_path) is not None
    assert "held by another job" in caplog.messages[0]


def test_a_lock_that_somebody_deletes_comes_back(tmp_path: Path) -> None:
    with closing(RunLock(tmp_path, 0.6)) as lock:
        acquire(lock)
        (tmp_path / NAME).unlink()
        deadline = time.monotonic() + TIMEOUT_S
        while read_holder(tmp_path) is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_lock_is_given_back_while_storage_holds_its_beat(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The beat comes to an end later: it complains of nothing, and the lock does not come back."""
    held, go, said = threading.Event(), threading.Event(), []

    def slow(file: IO[str], holder: Holder) -> None:
        if holder.beat:
            held.set()
            assert go.wait(TIMEOUT_S)
        write_in_place(file, holder)

    monkeypatch.setattr(threading, "excepthook", said.append)
    lock = RunLock(tmp_path, 0.6, write=slow)
    acquire(lock)
    (beat,) = (thread for thread in threading.enumerate() if thread.name == "run-lock")
    assert held.wait(TIMEOUT_S)
    lock.close()
    go.set()
    beat.join(TIMEOUT_S)
    assert not beat.is_alive()
    assert (said, list(tmp_path.iterdir())) == ([], [])


def test_storage_without_links_will_do(tmp_path: Path, start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with closing(RunLock(tmp_path, SILENT_S)) as lock:
        acquire(lock)
        assert [path.name for path in tmp_path.iterdir()] == [NAME]
        other = RunLock(tmp_path, SILENT_S)
        with pytest.raises(InUse):
            acquire(other)
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_written_is_the_storages_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        RunLock(tmp_path / "nowhere", SILENT_S).try_acquire()
    assert proc.machine()  # /proc is there, or the tests above showed nothing

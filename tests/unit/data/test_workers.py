"""Loader workers end with their trainer, and are named when they die. Real processes throughout."""

from __future__ import annotations

import errno
import math
import multiprocessing
import multiprocessing.reduction
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.data import IterableDataset

from ppar_dist.data.loader import train_loader
from ppar_dist.data.sources import open_sources
from ppar_dist.data.workers import LoaderWorkers, WorkerDied, check_temporary_folder
from ppar_dist.errors import UserError
from tests.unit.street_shards import config, write_domains

pytestmark = pytest.mark.process

LIMIT = 60.0  # seconds for what takes a moment


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_domains(tmp_path_factory.mktemp("shards"), samples_per_shard=8)


def wait_until(done: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not done():
        assert time.monotonic() < end, f"{what} has not happened within {LIMIT} s"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize("deadly", [signal.SIGKILL, signal.SIGBUS])
def test_a_dead_worker_is_named(root: Path, number: int, deadly: signal.Signals) -> None:
    cfg = config(root, {"workers": 2})
    before = set(multiprocessing.active_children())
    loader = train_loader(cfg, open_sources(cfg), 1, 2, 0, 600)
    next(loader)
    workers = sorted(set(multiprocessing.active_children()) - before, key=lambda p: int(p.name.split("-")[1]))
    os.kill(workers[number].pid or 0, deadly)
    wait_until(lambda: not is_alive(workers[number].pid or 0), "the end of a worker")
    time.sleep(0.2)  # an error raised by a signal handler would come up here, in the trainer's own code
    with pytest.raises(WorkerDied) as error:
        for _ in loader:
            pass
    expected = f"rank 1: loader worker {number} (pid {workers[number].pid}) was killed by {deadly.name}. "
    assert str(error.value).startswith(expected)
    assert "/dev/shm" in str(error.value)
    assert "lower data.workers=2" in str(error.value)
    assert not any(is_alive(worker.pid or 0) for worker in workers)


class Severed:
    """Something whose other half is fetched from the worker that sent it, which has closed its sockets."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return _reset, ()


def _reset() -> None:
    raise ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))


class Severing(IterableDataset[Severed]):
    """Its worker ends by SIGKILL ``dies_after_s`` after its connection was closed, or lives on."""

    def __init__(self, dies_after_s: float | None) -> None:
        self.dies_after_s = dies_after_s

    def __iter__(self) -> Iterator[Severed]:
        yield Severed()
        if self.dies_after_s is not None:
            time.sleep(self.dies_after_s)
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_is_named_whose_connection_goes_before_it_does() -> None:
    """The kernel closes the sockets of a killed process first; then its parent learns of the end."""
    with pytest.raises(WorkerDied, match=r"rank 3: loader worker 0 \(pid \d+\) was killed by SIGKILL\. "):
        next(LoaderWorkers(1, 3).iterate(Severing(1.0)))


def test_a_lost_connection_of_a_worker_that_lives_is_what_it_is() -> None:
    with pytest.raises(ConnectionResetError):
        next(LoaderWorkers(1, 3, dying_s=0.3).iterate(Severing(None)))


class Resetting(IterableDataset[None]):
    """Its reading fails, as from shared storage that is reset."""

    def __iter__(self) -> Iterator[None]:
        yield _reset()


def test_without_workers_a_lost_connection_is_not_waited_for() -> None:
    with pytest.raises(ConnectionResetError):
        next(LoaderWorkers(0, 3, dying_s=math.inf).iterate(Resetting()))


def test_the_handler_of_the_program_stays(root: Path) -> None:
    before = signal.getsignal(signal.SIGCHLD)
    cfg = config(root, {"workers": 1})
    assert len(list(train_loader(cfg, open_sources(cfg), 0, 1, 0, 12))) == 2
    assert signal.getsignal(signal.SIGCHLD) == before


TRAINER = """
import multiprocessing, os, sys, time
from pathlib import Path
from ppar_dist.data.loader import train_loader
from ppar_dist.data.sources import open_sources
from tests.unit.street_shards import config
cfg = config(Path(sys.argv[1]), {"workers": 2})
loader = train_loader(cfg, open_sources(cfg), 0, 1, 0, 600)
next(loader)
print(*(child.pid for child in multiprocessing.active_children()), flush=True)
time.sleep(600)
"""


def test_workers_die_with_a_killed_trainer(root: Path) -> None:
    """Even stopped ones, which cannot look after it themselves: the kernel kills them."""
    trainer = subprocess.Popen([sys.executable, "-c", TRAINER, str(root)], stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    try:
        workers = [int(pid) for pid in trainer.stdout.readline().split()]
        assert len(workers) == 2
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
    finally:
        trainer.kill()
        trainer.wait(LIMIT)
    wait_until(lambda: not any(map(is_alive, workers)), "the end of the workers")


CHILD = (
    "import os; from ppar_dist.processes.proc import die_with_parent; "
    "die_with_parent(15, {parent}); print('lives')"
)


def test_a_parent_that_was_gone_before_is_noticed() -> None:
    for parent, code, said in (("os.getppid()", 0, "lives\n"), ("1 << 30", -signal.SIGTERM, "")):
        command = [sys.executable, "-c", CHILD.format(parent=parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        assert (done.returncode, done.stdout) == (code, said)


def test_an_impossible_signal_is_an_error() -> None:
    from ppar_dist.processes.proc import die_with_parent

    with pytest.raises(OSError, match=r"prctl\(PR_SET_PDEATHSIG, 9999\): Invalid argument"):
        die_with_parent(9999)


@pytest.mark.parametrize("length", [75, 76])
def test_a_temporary_folder_too_long_for_sockets_is_refused_before_it_hangs(
    root: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    folder = Path("/tmp/" + "t" * (length - len("/tmp/")))
    folder.mkdir()
    try:
        monkeypatch.setattr("tempfile.tempdir", str(folder))
        # The folder of an earlier test may be remembered.
        monkeypatch.delitem(multiprocessing.current_process()._config, "tempdir", raising=False)
        cfg = config(root, {"workers": 1})
        loader = train_loader(cfg, open_sources(cfg), 0, 1, 0, 60)
        if length == 75:
            assert len(next(loader)) > 0, "the longest that is allowed works"
            check_temporary_folder()
        else:
            with pytest.raises(
                UserError, match=r"a path of at most 75 bytes, got 76: .*set TMPDIR to a shorter"
            ):
                next(loader)
        loader.close()
    finally:
        multiprocessing.current_process()._config.pop("tempdir", None)
        shutil.rmtree(folder, ignore_errors=True)


class _Unsendable:
    def __reduce__(self) -> object:
        raise OSError("no way to hand this over")


class _UnsendableItems(IterableDataset):
    def __iter__(self) -> Iterator[object]:
        yield 1
        yield _Unsendable()


def test_an_error_of_a_workers_helper_thread_ends_the_wait(capfd: pytest.CaptureFixture[str]) -> None:
    items = LoaderWorkers(1, 0).iterate(_UnsendableItems())
    assert next(items) == 1
    with pytest.raises(WorkerDied, match=r"exited with code 1; .*: OSError: no way to hand this over"):
        next(items)
    assert "no way to hand this over" in capfd.readouterr().err


class _Unhandable(IterableDataset):
    """Its tensors' memory cannot be handed over: the thread of the worker's sockets fails."""

    def __init__(self, error: OSError) -> None:
        self.error = error

    def __iter__(self) -> Iterator[torch.Tensor]:
        def fail(*_: object) -> None:
            raise self.error

        multiprocessing.reduction.send_handle = fail  # in the worker only
        yield torch.zeros(3)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.EACCES, UserError), (errno.EMFILE, WorkerDied)], ids=["for good", "this time"]
)
def test_an_error_of_the_thread_of_a_workers_sockets_is_passed_on(number: int, kind: type[Exception]) -> None:
    """What no retry cures is the user's to mend."""
    items = LoaderWorkers(1, 2).iterate(_Unhandable(OSError(number, os.strerror(number))))
    with pytest.raises(kind, match=rf"rank 2: loader worker 0 .*: .*\[Errno {number}\]") as error:
        next(items)
    assert ("set TMPDIR to a short path on a local disk" in str(error.value)) == (kind is UserError)

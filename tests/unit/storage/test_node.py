"""Files that the processes of a node fetch once, wait for together, and remove when nobody uses them."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ppar_dist.storage import entries, progress
from ppar_dist.storage.location import Remote
from ppar_dist.storage.node import NodeStorage
from tests.range_server import RangeServer, range_server

FORK = multiprocessing.get_context("fork")
Process = multiprocessing.process.BaseProcess
CONTENT = {f"weights-{number}.pt": random.Random(number).randbytes(20_000) for number in range(12)}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    (tmp_path / "bucket").mkdir()
    for name, content in CONTENT.items():
        (tmp_path / "bucket" / name).write_bytes(content)
    with range_server(tmp_path / "bucket") as running:
        yield running


def place(server: RangeServer, number: int) -> Remote:
    return Remote(f"{server.url}/weights-{number}.pt")


def grow_old(entry: Path, days: float) -> None:
    then = time.time() - days * entries.DAY_S
    for path in (*entry.iterdir(), entry):
        os.utime(path, (then, then))


def gets(server: RangeServer) -> int:
    return sum(method == "GET" for method, _, _ in server.requests)


def started(target: Callable[..., None], *arguments: object) -> Process:
    process = FORK.Process(target=target, args=arguments)
    process.start()
    return process


def _use(folder: Path, url: str, ready: Path) -> None:
    NodeStorage(folder).fetched(Remote(url))
    ready.touch()
    time.sleep(60)


def _use_in_a_child(folder: Path, url: str, ready: Path) -> None:
    NodeStorage(folder).fetched(Remote(url))
    child = FORK.Process(target=time.sleep, args=(60,))  # as a loader worker
    child.start()
    ready.write_text(str(child.pid))
    os._exit(0)


def wait_for(path: Path) -> None:
    end = time.monotonic() + 30.0
    while not path.exists() or (path.suffix == ".pid" and not path.read_text()):
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.process
def test_what_a_living_process_uses_stays(server: RangeServer, tmp_path: Path) -> None:
    node, file = NodeStorage(tmp_path / "cache"), tmp_path / "cache/files"
    user = started(_use, node.folder, place(server, 0).url, tmp_path / "ready")
    wait_for(tmp_path / "ready")
    (entry,) = file.iterdir()
    grow_old(entry, 31)
    node.clear()
    assert (entry / "weights-0.pt").read_bytes() == CONTENT["weights-0.pt"]
    grow_old(entry, 31)  # it was read
    user.kill()
    user.join(10)
    node.clear()
    assert not list(file.iterdir())
    assert not list((node.folder / "locks").iterdir())


@pytest.mark.process
def test_the_worker_of_a_dead_process_uses_what_it_used(server: RangeServer, tmp_path: Path) -> None:
    node = NodeStorage(tmp_path / "cache")
    started(_use_in_a_child, node.folder, place(server, 0).url, tmp_path / "ready.pid").join()
    wait_for(tmp_path / "ready.pid")
    (entry,) = (node.folder / "files").iterdir()
    grow_old(entry, 31)
    node.clear()
    assert entry.exists()
    os.kill(int((tmp_path / "ready.pid").read_text()), signal.SIGKILL)
    end = time.monotonic() + 10
    while entry.exists():
        assert time.monotonic() < end
        node.clear()


def test_a_new_file_clears_those_unused_for_30_days(tmp_path: Path, server: RangeServer) -> None:
    node, files = NodeStorage(tmp_path / "cache"), tmp_path / "cache/files"
    for name, days in (("old", 31), ("used", 29), ("read", 31), (".removed-half", 0)):
        (files / name).mkdir(parents=True)
        (files / name / "x").write_bytes(b"x")
        grow_old(files / name, days)
    os.utime(files / "read/x", (time.time(), 0))  # by a process of an earlier version, which held no lock
    path = node.fetched(place(server, 0))
    assert {entry.name for entry in files.iterdir()} == {"used", "read", path.parent.name}
    grow_old(files / "used", 31)
    assert node.fetched(place(server, 0)) == path
    assert (files / "used").exists(), "only what is new clears"
    grow_old(path.parent, 31)
    node.fetched(place(server, 1))
    assert path.exists(), "this process uses it"
    assert not (files / "used").exists()


@pytest.mark.parametrize("header", ["ETag", "Last-Modified", None])
def test_a_replaced_file_of_the_same_size_is_fetched(
    tmp_path: Path, server: RangeServer, header: str | None
) -> None:
    """As files of text embeddings of the same classes are; plain web servers tell their time alone."""
    server.version = header
    node, file = NodeStorage(tmp_path / "cache"), tmp_path / "bucket/weights-0.pt"
    os.utime(file, (1e9, 1e9))
    before = node.fetched(place(server, 0))
    assert node.fetched(place(server, 0)) == before
    assert gets(server) == (1 if header else 2)
    file.write_bytes(CONTENT["weights-1.pt"])
    assert node.fetched(place(server, 0)).read_bytes() == CONTENT["weights-1.pt"]
    if header is not None:
        assert before.read_bytes() == CONTENT["weights-0.pt"]


def test_a_half_written_file_of_a_dead_process_goes(tmp_path: Path, server: RangeServer) -> None:
    node = NodeStorage(tmp_path / "cache")
    path = node.fetched(place(server, 0))
    path.unlink()
    old, young = path.with_name(".weights-0.pt.1"), path.with_name(".weights-0.pt.2")
    old.touch()
    young.touch()
    os.utime(old, (0, 0))
    assert node.fetched(place(server, 0)).read_bytes() == CONTENT["weights-0.pt"]
    assert {each.name for each in path.parent.iterdir()} == {path.name, young.name}


@pytest.mark.process
def test_a_process_forked_meanwhile_keeps_nobody_from_an_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a loader worker that the main thread forks while another thread looks at what may go."""
    children: list[Process] = []
    last_use = entries._last_use

    def fork_and_use(entry: Path) -> float:
        children.append(started(time.sleep, 60))
        os.utime(entry)
        return last_use(entry)

    (tmp_path / "entry").mkdir()
    monkeypatch.setattr(entries, "_last_use", fork_and_use)
    entries.remove_unused(tmp_path / "entry", 30.0)
    user = started(entries.hold, tmp_path / "entry")
    user.join(20)
    code = user.exitcode
    for process in (user, *children):
        process.kill()
        process.join(10)
    assert code == 0
    assert len(children) == 1


def _fetch_and_read(folder: Path, urls: list[str], seed: int) -> None:
    rng = random.Random(seed)
    paths = [NodeStorage(folder).fetched(Remote(url)) for url in rng.sample(urls, 2)]
    for _ in range(5):
        time.sleep(rng.uniform(0.0, 0.02))
        assert all(path.read_bytes() == CONTENT[path.name] for path in paths)
        NodeStorage(folder).clear()


@pytest.mark.process
def test_nothing_goes_that_another_has_begun_to_use(
    server: RangeServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Processes come and go, and all remove at once whatever is in no use."""
    monkeypatch.setattr("ppar_dist.storage.node.UNUSED_DAYS", -1.0)
    urls = [place(server, number).url for number in range(12)]
    folder, number = tmp_path / "cache", 0
    running: list[Process] = []
    codes: list[int | None] = []
    while number < 200 and not (number > 20 and gets(server) > 12):
        while len(running) < 4:
            number += 1
            running.append(started(_fetch_and_read, folder, urls, number))
        first = running.pop(0)
        first.join(30)
        codes.append(first.exitcode)
    for process in running:
        process.join(30)
        codes.append(process.exitcode)
    assert set(codes) == {0}
    assert gets(server) > 12, "something was removed meanwhile"
    NodeStorage(folder).clear()
    assert not list((folder / "files").iterdir())


def _fetch_as_another_rank(folder: Path, url: str) -> None:
    progress._COUNTER = memoryview(bytearray(8)).cast("Q")  # a fork shares that of its parent
    NodeStorage(folder).fetched(Remote(url))


@pytest.mark.process
def test_who_waits_for_another_that_fetches_gives_signs_of_life(server: RangeServer, tmp_path: Path) -> None:
    """As long as the other one advances: a stopped one is a hang."""
    server.faults.append("slow")  # two seconds
    node = NodeStorage(tmp_path / "cache")
    other = started(_fetch_as_another_rank, node.folder, place(server, 0).url)
    while not gets(server):
        time.sleep(0.01)
    waiting = threading.Thread(target=node.fetched, args=(place(server, 0),))
    waiting.start()
    time.sleep(0.8)
    counts = [progress.attempts()]
    time.sleep(0.6)
    counts.append(progress.attempts())
    assert other.pid is not None
    os.kill(other.pid, signal.SIGSTOP)
    time.sleep(0.3)
    counts.append(progress.attempts())
    time.sleep(0.6)
    counts.append(progress.attempts())
    os.kill(other.pid, signal.SIGCONT)
    waiting.join(30)
    other.join(30)
    assert other.exitcode == 0
    assert counts[0] < counts[1]
    assert counts[2] == counts[3]
    assert gets(server) == 1

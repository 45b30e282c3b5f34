"""Data and checkpoints at gs://: a job and requests against an emulator of Google Cloud Storage."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.storage import remote
from ppar_dist.storage.failures import StorageDenied
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.cluster.fault_proxy import FaultProxy, fault_proxy
from tests.cluster.storage_faults import Cut, Error, Fault, Reset, Stall
from tests.cluster.test_remote_data import computed
from tests.faults.jobs import job, ours, tiny_run
from tests.ranks import free_port

BUCKET = Remote("gs://lab")
CONTENT = bytes(range(256)) * 40
STORAGE = Storage(20.0)
TRAIN = {"steps": 8, "global_batch": 6, "log_every": 1, "ledger": True}


@pytest.fixture(scope="module")
def emulator() -> Iterator[int]:
    """The port of an emulator with an empty bucket."""
    pytest.importorskip("gcsfs", reason="pip install '.[cluster]'")
    server = pytest.importorskip("gcp_storage_emulator.server", reason="pip install '.[cluster]'")
    port = free_port()
    running = server.create_server("127.0.0.1", port, in_memory=True, default_bucket=BUCKET.name)
    running.start()
    yield port
    running.stop()


@pytest.fixture
def proxy(emulator: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """What requests of this process and its jobs go through."""
    with fault_proxy(emulator) as between:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", between.endpoint)
        remote._forget_drivers()
        yield between
    remote._forget_drivers()


def test_the_life_of_objects(proxy: FaultProxy, tmp_path: Path) -> None:
    place, large = BUCKET / "life", os.urandom((51 << 20) + 7)  # sent in two parts
    (tmp_path / "large").write_bytes(large)
    STORAGE.write(place / "a", CONTENT)
    STORAGE.upload(tmp_path / "large", place / "below" / "large")
    STORAGE.download(place / "below" / "large", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == large
    assert STORAGE.read(place / "a") == CONTENT
    assert STORAGE.read_range(place / "a", 5, 2000) == CONTENT[5:2000]
    assert STORAGE.read_range(place / "a", len(CONTENT) - 5, len(CONTENT) + 5) == CONTENT[-5:]
    assert STORAGE.read_range(place / "a", len(CONTENT) + 1, len(CONTENT) + 5) == b""
    assert [(each.name, each.bytes, each.is_folder) for each in STORAGE.entries(place)] == [
        ("a", len(CONTENT), False),
        ("below", 0, True),
    ]
    before = STORAGE.facts(place / "a").version
    STORAGE.write(place / "a", CONTENT[::-1])
    assert STORAGE.facts(place / "a").version != before
    for _ in range(2):
        STORAGE.remove(place / "a")
    with pytest.raises(FileNotFoundError, match="no such object"):
        STORAGE.facts(place / "a")
    with pytest.raises(ValueError, match="there is no such bucket; create it"):
        STORAGE.write(Remote("gs://none/a"), CONTENT)


@pytest.mark.parametrize(
    "fault", [Error(503), Error(429), Error(408), Reset(), Cut(100), Stall(8.0)], ids=lambda each: repr(each)
)
def test_what_may_pass_is_tried_again(
    proxy: FaultProxy, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    STORAGE.write(BUCKET / "faults", CONTENT)
    monkeypatch.setattr(remote, "_READ_S", 2.0)  # a busy machine answers the second time within it
    remote._forget_drivers()
    with proxy.rule(fault, method="GET", times=1):
        assert STORAGE.read_range(BUCKET / "faults", 5, 2000) == CONTENT[5:2000]
    assert proxy.count("GET") == 2


@pytest.mark.parametrize("status", [401, 403])
def test_refused_credentials_are_told_at_once(proxy: FaultProxy, status: int) -> None:
    asks: list[Callable[[], Any]] = [
        lambda: STORAGE.read(BUCKET / "refused"),
        lambda: STORAGE.write(BUCKET / "refused", CONTENT),
        lambda: STORAGE.entries(BUCKET / "refused"),
    ]
    with proxy.rule(Error(status)):
        for ask in asks:
            with pytest.raises(StorageDenied, match="check GOOGLE_APPLICATION_CREDENTIALS"):
                ask()
    assert proxy.count() == len(asks)


def test_killed_and_its_folder_lost_a_job_goes_on_from_the_bucket(
    proxy: FaultProxy, blocks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its data lie in the bucket as well, and it computes what a job in folders does."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    undisturbed, config = tiny_run(blocks, tmp_path / "local", train=TRAIN)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "local.log") as running:
        assert running.wait() == 0, running.output
    for path in blocks.glob("*/*"):
        STORAGE.upload(path, BUCKET / "shards" / path.parent.name / path.name)
    place = BUCKET / "run"
    run, config = tiny_run(
        blocks,
        tmp_path / "remote",
        train=TRAIN,
        data={"root": f"{BUCKET}/shards"},
        checkpoint={"every": 3, "remote": place.url},
        faults={"peer_s": 4},
    )
    with job(ours("train", config, "--nproc", "1"), tmp_path / "first.log") as running:
        running.wait_for(lambda: RemoteRun(place, STORAGE).steps(), "a checkpoint in the bucket")
        running.process.send_signal(signal.SIGKILL)
        running.wait()
    safe = RemoteRun(place, STORAGE).steps()[-1]
    shutil.rmtree(run)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "second.log") as running:
        assert running.wait() == 0, running.output
    assert f"from step-{safe:08d}" in running.output
    assert computed(run) == computed(undisturbed)
    command = ours("evaluate", place.url, "--target", f"left={BUCKET}/shards/left", "--json")
    with job(command, tmp_path / "evaluate.log") as running:
        assert running.wait() == 0, running.output
    assert '"left"' in running.output

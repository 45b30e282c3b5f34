"""Checkpoints with a file that is sent in parts, on a real object server: killed at each request, refused."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ppar_dist import checkpoint
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.run.mirror import Mirror
from ppar_dist.storage.failures import StorageUnavailable
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage, _writing
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.storage_faults import SLOW_DOWN, Do, Error, Fault, Reset
from tests.cluster.test_remote_checkpoints import STORAGE, bucket, last_two, mirror_of, started
from tests.kill.scenes import snapshot, value_of

__all__ = ["bucket"]

VALUES = 27_500_000  # 110 MB in fp32: three parts
PARTS = 3
BEGIN, PART, END = ("POST", "*uploads"), ("PUT", "*partNumber=*"), ("POST", "*[?]uploadId=*")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a small checkpoint and a large one."""
    folder = tmp_path / "run"
    checkpoint.publish(folder, snapshot(10, 10.0))
    large = {"teacher.safetensors": {"weight": torch.arange(VALUES, dtype=torch.float32)}}
    small = snapshot(20, 20.0)
    checkpoint.publish(folder, replace(small, tensors=dict(small.tensors) | large))
    (folder / "config.yaml").write_text("seed: 0\n")
    return folder


def copy(run: Path, place: Remote, storage: Storage = STORAGE) -> int:
    """A start of the job: send what the remote lacks. Returns the bytes sent of the large one."""
    mirror = Mirror(run, place, storage, 0.3)
    mirror.open(lambda: None)
    small, large = checkpoint.list_checkpoints(run)
    try:
        if not RemoteRun(place, STORAGE).steps():
            mirror.copy(small, last_two)
        return mirror.copy(large, last_two)
    finally:
        mirror.close()


def unfinished(place: Remote) -> list[str]:
    """Keys of the uploads in parts that have not ended."""
    name = place.url.removeprefix("s3://").partition("/")[0]
    return [each["Key"] for each in _writing(place).list_multipart_uploads(name)]


def parts_sent(proxy: FaultProxy) -> int:
    return sum("partNumber=" in request.query for request in proxy.requests)


def large_blob(run: Path) -> str:
    files = checkpoint.read_manifest(checkpoint.list_checkpoints(run)[-1])["files"]
    return str(files["teacher.safetensors"]["sha256"])


def test_killed_at_each_request_of_an_upload_in_parts_the_next_start_sends_it(
    bucket: Remote, storage_proxy: FaultProxy, run: Path, tmp_path: Path
) -> None:
    place = bucket / "run"
    remote, blob = RemoteRun(place, STORAGE), large_blob(run)
    STORAGE.write(bucket / "other" / "blobs" / "one", b"1")
    _writing(bucket).call_s3(
        "create_multipart_upload", Bucket=bucket.url.removeprefix("s3://"), Key="other/blobs/two"
    )
    moments = [(BEGIN, True, 0), (PART, False, 0), (END, False, 0), (END, True, 0)]
    for (method, path), forwarded, skip in moments:
        child: list[int] = []
        where = {"method": method, "path": path, "skip": skip, "times": 1}
        fault = Do(lambda child=child: os.kill(child[0], signal.SIGKILL), forwarded)
        lost = Fault() if forwarded else Reset()  # the server never sees the request
        with storage_proxy.rule(fault, **where), storage_proxy.rule(lost, **where):
            assert not started(lambda: copy(run, place), child)
        assert remote.steps() == [10]
        assert remote.problems(10) == []
        is_joined = (method, path) == END and forwarded
        assert (blob in {entry.name for entry in STORAGE.entries(place / "blobs")}) == is_joined
        left = [] if is_joined else [f"run/blobs/{blob}"]
        assert unfinished(place) == ["other/blobs/two", *left], "those of the kills before are given up"
    storage_proxy.forget()
    assert copy(run, place) < 4 * VALUES, "what was joined before the kill is there"
    assert parts_sent(storage_proxy) == 0
    assert (remote.steps(), unfinished(place)) == ([10, 20], ["other/blobs/two"])
    mirror = mirror_of(tmp_path / "fresh", place, 60.0)
    mirror.open(lambda: None)
    found = checkpoint.find_checkpoint(tmp_path / "fresh")
    assert found is not None
    assert (value_of(found), checkpoint.verify(found)) == (20, [])
    mirror.close()


def test_a_part_that_is_refused_is_sent_again_and_one_that_always_is_leaves_nothing(
    bucket: Remote, storage_proxy: FaultProxy, run: Path
) -> None:
    place, (method, path) = bucket / "run", PART
    unavailable = Error(503, "ServiceUnavailable")
    unknown = Error(501, "NotImplemented")  # of servers that do not list uploads: a start does without
    with (
        storage_proxy.rule(unknown, method="GET", path="*[?]*uploads*") as listed,
        storage_proxy.rule(unavailable, method=method, path=path),
        pytest.raises(StorageUnavailable, match="cannot write"),
    ):
        copy(run, place, Storage(1.0))
    assert listed.taken > 0
    assert large_blob(run) not in {entry.name for entry in STORAGE.entries(place / "blobs")}
    assert (RemoteRun(place, STORAGE).steps(), unfinished(place)) == ([10], [])
    for fault, parts in ((SLOW_DOWN, PARTS + 1), (unavailable, 2 * PARTS)):  # that part, or all of them
        storage_proxy.forget()
        with storage_proxy.rule(fault, method=method, path=path, skip=1, times=1) as rule:
            assert copy(run, place) > 4 * VALUES
        assert (rule.taken, parts_sent(storage_proxy)) == (1, parts)
        assert RemoteRun(place, STORAGE).steps() == [10, 20]
        assert unfinished(place) == []
        RemoteRun(place, STORAGE).withdraw(20)
        STORAGE.remove(place / "blobs" / large_blob(run))

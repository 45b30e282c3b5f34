"""Checkpoints on a real object server: killed at every request, damaged, wanted by two jobs, resumed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.errors import InUse, UserError
from ppar_dist.run.mirror import Mirror
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_server import ObjectServer
from tests.cluster.storage_faults import Do, Error
from tests.kill.scenes import snapshot, value_of

STEPS = (10, 20, 30)
STORAGE = Storage(20.0)


@pytest.fixture
def bucket(
    object_store: ObjectServer, storage_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Remote]:
    """A bucket of its own, behind the proxy; a beat that goes on after the test would ask the next one's."""
    for name, value in object_store.environment(storage_proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    import s3fs

    from ppar_dist.storage import remote

    name = f"runs-{os.getpid()}-{abs(hash(tmp_path)):x}"
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    remote._new_driver.cache_clear()  # the proxy has another port
    yield Remote(f"s3://{name}")
    left = [each.name for each in threading.enumerate() if each.name == "remote-owner"]
    assert not left, "a mirror is still open"


def mirror_of(run: Path, place: Remote, silent_s: float) -> Mirror:
    run.mkdir(parents=True, exist_ok=True)
    return Mirror(run, place, STORAGE, silent_s)


# Which requests are the last of a killed job: each takes seconds, so all of them only when asked for. Odd, so
# that kills come before and after the server has done what was asked.
EVERY = int(os.environ.get("PPAR_KILL_EVERY", "7"))


def last_two(steps: list[int]) -> Set[int]:
    return set(steps[-2:])


def write(run: Path, step: int) -> Path:
    """A checkpoint with all kinds of files, one of them constant, and a record."""
    teacher = {"teacher.safetensors": lambda: checkpoint_tensors()}
    earlier = checkpoint.find_checkpoint(run)
    folder = checkpoint.publish(run, replace(snapshot(step, float(step)), constant=teacher, same_in=earlier))
    (run / "metrics").mkdir(exist_ok=True)
    lines = [json.dumps({"step": each}) + "\n" for each in STEPS if each <= step]
    (run / "metrics" / "train.jsonl").write_text("".join(lines))
    (run / "config.yaml").write_text("seed: 0\n")
    return folder


def checkpoint_tensors() -> dict[str, object]:
    import torch

    return {"weight": torch.ones(600)}


def go_on(run: Path, place: Remote, silent_s: float = 60.0, steps: tuple[int, ...] = STEPS) -> int | None:
    """A start of the job: take the newest, write the rest. Returns the step it began from."""
    mirror = mirror_of(run, place, silent_s)
    mirror.open(lambda: None)
    found = checkpoint.find_checkpoint(run)
    began = None if found is None else checkpoint.step_of(found)
    if found is not None:
        assert value_of(found) == began
        send(mirror, found)  # deletes what a kill during the last deletion has left
    for step in steps:
        if began is None or step > began:
            folder = write(run, step)
            if step != steps[1]:  # as one that waits while a newer one is published
                send(mirror, folder)
            checkpoint.retain(run, 2)
    mirror.close()
    return began


def send(mirror: Mirror, folder: Path) -> None:
    """As the uploading thread does: the newest, then what is lacking."""
    to = mirror.destination(last_two)
    to.copy(folder)
    for earlier in to.lacking(folder):
        to.add(earlier)


def in_child(work: Callable[[], object]) -> bool:
    """Do it in a process of its own; whether it came to its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the start failed by itself"
    return not os.WIFSIGNALED(status)


def content(place: Remote) -> dict[str, object]:
    """All that a finished remote holds, but for times and who wrote it."""
    found = RemoteRun(place, STORAGE)
    manifests = {
        step: {name: entry["sha256"] for name, entry in found.manifest(step)["files"].items()}
        for step in found.steps()
    }
    blobs = {entry.name: entry.bytes for entry in STORAGE.entries(place / "blobs")}
    assert blobs.keys() == {sha256 for files in manifests.values() for sha256 in files.values()}
    return {
        "manifests": manifests,
        "blobs": blobs,
        "names": [entry.name for entry in STORAGE.entries(place)],
        "train": STORAGE.read(place / "metrics" / "train.jsonl"),
    }


def test_killed_at_every_request_it_goes_on_and_ends_as_undisturbed(
    bucket: Remote, storage_proxy: FaultProxy, tmp_path: Path
) -> None:
    assert in_child(lambda: go_on(tmp_path / "undisturbed", bucket / "undisturbed"))
    expected, killed, began = content(bucket / "undisturbed"), 0, set()
    assert set(expected["manifests"]) == {20, 30}  # type: ignore[call-overload]
    while True:
        run, place = tmp_path / "run", bucket / f"killed-{killed}"
        forwarded = bool(killed % 2)  # after, or before, the server has done what was asked
        child: list[int] = []
        with storage_proxy.rule(
            Do(lambda child=child: os.kill(child[0], signal.SIGKILL), forwarded), skip=killed, times=1
        ):
            if started(lambda run=run, place=place: go_on(run, place), child):
                break
        remote = RemoteRun(place, STORAGE)
        for step in remote.steps():  # what has a manifest is whole
            folder = checkpoint.fetched_checkpoint(
                place / "checkpoints" / checkpoint.checkpoint_name(step), "latest", STORAGE, tmp_path / "look"
            )
            assert value_of(folder) == step
        safe = max(remote.steps(), default=None)
        if killed % 3:  # on a fresh machine, else in the same run.dir
            shutil.rmtree(run, ignore_errors=True)
            assert go_on(run, place, silent_s=0.3) == safe
        else:
            newest = checkpoint.find_checkpoint(run)
            go_on(run, place, silent_s=0.3)
            assert newest is None or (safe or 0) <= (checkpoint.step_of(newest) or 0)
        began.add(safe)
        found = content(place)
        if found["manifests"].keys() != {20, 30}:  # 20 was lost with its machine
            assert (killed % 3 > 0, safe, found["manifests"].keys()) == (True, 30, {10, 30})
            found |= {name: expected[name] for name in ("manifests", "blobs")}
        assert found == expected, f"killed at request {killed}"
        shutil.rmtree(run)
        shutil.rmtree(tmp_path / "look", ignore_errors=True)
        killed += EVERY
    assert began == {None, 10, 30}, "20 waits until 30 is there"
    assert killed > 40, "requests of an undisturbed run"
    print(f"killed at {killed // EVERY} of {killed} requests")


def started(work: Callable[[], object], child: list[int]) -> bool:
    """``in_child``, with the child's number known before its first request."""
    read, wrote = os.pipe()

    def held() -> None:
        os.read(read, 1)
        work()

    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            held()
            code = 0
        finally:
            os._exit(code)
    child.append(pid)
    os.write(wrote, b"x")
    _, status = os.waitpid(pid, 0)
    os.close(read)
    os.close(wrote)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the start failed by itself"
    return not os.WIFSIGNALED(status)


def test_a_damaged_or_incomplete_one_is_passed_over(
    bucket: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = bucket / "damaged"
    go_on(tmp_path / "run", place)
    entry = RemoteRun(place, STORAGE).manifest(30)["files"]["model.safetensors"]
    blob = place / "blobs" / entry["sha256"]
    whole = STORAGE.read(blob)
    for wrong in (whole[:-1], whole[:-1] + b"!"):
        STORAGE.write(blob, wrong)
        run = tmp_path / f"fresh-{len(wrong)}-{wrong[-1]}"
        with closing(mirror_of(run, place, 60.0)) as mirror:
            mirror.open(lambda: None)
        assert [checkpoint.step_of(each) for each in checkpoint.list_checkpoints(run)] == [20]
        assert "step-00000030" in caplog.text
    STORAGE.remove(place / "checkpoints" / "step-00000020" / "manifest.json")
    with (
        closing(mirror_of(tmp_path / "none", place, 60.0)) as mirror,
        pytest.raises(UserError, match="none of the 1 checkpoints"),
    ):
        mirror.open(lambda: None)


def test_a_remote_keeps_one_run_and_one_job(bucket: Remote, tmp_path: Path) -> None:
    place = bucket / "owned"
    first = mirror_of(tmp_path / "first", place, 1.2)
    first.open(lambda: None)
    with pytest.raises(InUse, match="one job writes to a remote"):
        mirror_of(tmp_path / "second", place, 2.0).open(lambda: None)
    first.copy(write(tmp_path / "first", 10), last_two)
    first.close()
    checkpoint.publish(tmp_path / "other", snapshot(10, 1.0))
    with pytest.raises(UserError, match="a remote keeps one run"):
        mirror_of(tmp_path / "other", place, 1.2).open(lambda: None)
    later = mirror_of(tmp_path / "later", place, 60.0)
    later.open(lambda: None)
    with pytest.raises(checkpoint.CheckpointError, match="taken over"):
        first.copy(write(tmp_path / "first", 20), last_two)
    assert RemoteRun(place, STORAGE).steps() == [10]
    later.close()


def test_a_rollback_holds_though_the_remote_cannot_be_reached(
    bucket: Remote, storage_proxy: FaultProxy, tmp_path: Path
) -> None:
    place, run = bucket / "back", tmp_path / "run"
    go_on(run, place)
    mirror = Mirror(run, place, Storage(1.0), 60.0)
    mirror.open(lambda: None)
    mirror.roll_back_to(20)
    checkpoint.withdraw(checkpoint.list_checkpoints(run)[-1])
    with storage_proxy.rule(Error(503, "ServiceUnavailable")), pytest.raises(OSError, match="cannot"):
        mirror.copy(checkpoint.list_checkpoints(run)[-1], last_two)
    mirror.close()
    again = Mirror(run, place, STORAGE, 60.0)
    again.open(lambda: None)
    assert checkpoint.step_of(checkpoint.list_checkpoints(run)[-1]) == 20
    again.copy(checkpoint.list_checkpoints(run)[-1], last_two)
    assert RemoteRun(place, STORAGE).steps() == [20]
    again.close()


def test_after_a_rollback_that_did_not_arrive_the_next_checkpoints_do(
    bucket: Remote, storage_proxy: FaultProxy, tmp_path: Path
) -> None:
    """The one rolled back to was not sent, as storage failed or a newer one went first."""
    place, run = bucket / "next", tmp_path / "run"
    go_on(run, place)
    mirror = mirror_of(run, place, 60.0)
    mirror.open(lambda: None)
    before = mirror.destination(set)
    spoiled = write(run, 32)
    before.copy(spoiled)
    kept = shutil.copytree(spoiled, tmp_path / "step-00000032")  # as if it still was on its way
    mirror.roll_back_to(20)
    for folder in checkpoint.list_checkpoints(run)[1:]:
        checkpoint.withdraw(folder)
    assert mirror.lacking(spoiled, set) == [], "until a checkpoint of the new course is there"
    with pytest.raises(checkpoint.CheckpointError, match="rolled back"):
        before.copy(kept)
    mirror.destination(last_two).copy(write(run, 25))
    assert RemoteRun(place, STORAGE).steps() == [20, 25]
    mirror.close()
    later = mirror_of(run, place, 60.0)
    later.open(lambda: None)
    later.copy(write(run, 40), last_two)
    assert RemoteRun(place, STORAGE).steps() == [25, 40]
    later.close()


def test_what_is_kept_and_lacking_is_added_to_what_is_there(
    bucket: Remote, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place, run = bucket / "lacking", tmp_path / "run"
    mirror = mirror_of(run, place, 60.0)
    mirror.open(lambda: None)
    folders = {step: write(run, step) for step in (10, 20, 30, 40, 50)}

    def keep(steps: list[int]) -> Set[int]:
        return {10, 30, *steps[-2:]}  # 10 is the best, 30 is every 30th

    to = mirror.destination(keep)
    to.copy(folders[50])
    assert to.lacking(folders[50]) == [folders[40], folders[30], folders[10]]
    (folders[40] / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(checkpoint.CheckpointError, match="damaged"):
        to.add(folders[40])
    assert to.lacking(folders[50]) == [folders[30], folders[10]]
    for folder in to.lacking(folders[50]):
        to.add(folder)
    assert RemoteRun(place, STORAGE).steps() == [10, 30, 50]
    assert to.lacking(folders[50]) == []
    assert [
        checkpoint.step_of(each) for each in mirror.lacking(folders[50], lambda steps: set(steps[-3:]))
    ] == [20], "in place of the damaged one"
    mirror.roll_back_to(30)
    mirror.copy(write(run, 40), keep)  # again, and whole
    assert RemoteRun(place, STORAGE).steps() == [10, 30, 40]
    mirror.copy(write(run, 50), keep)
    RemoteRun(place, STORAGE).withdraw(40)
    assert mirror.lacking(folders[50], keep) == [folders[40]]
    mirror.close()
    for step in (10, 30):
        found = checkpoint.fetched_checkpoint(
            place / "checkpoints" / checkpoint.checkpoint_name(step), "latest", STORAGE, tmp_path / "look"
        )
        assert value_of(found) == step


def test_a_prefix_that_holds_anything_else_is_refused(bucket: Remote, tmp_path: Path) -> None:
    STORAGE.write(bucket / "blobs" / "mine", b"kept")
    with pytest.raises(UserError, match="a remote is an empty prefix or a run's own"):
        mirror_of(tmp_path / "run", bucket, 0.3).open(lambda: None)
    assert STORAGE.read(bucket / "blobs" / "mine") == b"kept"

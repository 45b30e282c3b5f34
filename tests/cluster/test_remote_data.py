"""Whole jobs whose data lie on a real object server, through every fault of storage.

They compute what jobs on a local folder compute, or end with the code that says what to do.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import s3fs

from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_server import ObjectServer
from tests.cluster.storage_faults import EXPIRED, SLOW_DOWN, Cut, Do, Error, Flip, Latency, Reset, Stall
from tests.ranks import read_lines, run_command, run_ranks, tiny_config, write_config

BUCKET = "training-data"
AGAIN = (
    "test_elastic.py::test_other_numbers_of_ranks",
    "test_preemption.py::test_a_signal_to_a_single_rank_stops_all",
    "test_preemption.py::test_a_rank_alone_and_the_run_that_follows",
    "test_bad_data_jobs.py::test_a_resume_on_other_ranks_with_a_shard_missing_gives_the_same",
    "test_bad_data_jobs.py::test_what_goes_bad_is_replaced_alike_on_any_number_of_ranks[2]",
    "test_ledger_runs.py::test_the_same_ranks_end_bit_by_bit_as_if_nothing_had_happened",
    "test_non_finite.py::test_a_streak_rolls_back_and_steps_over_the_data",
)
SECTIONS: dict[str, dict[str, Any]] = {
    "train": {"steps": 8, "global_batch": 6, "log_every": 1, "ledger": True}
}


@pytest.fixture
def store(
    object_store: ObjectServer, storage_proxy: FaultProxy, blocks: Path, monkeypatch: pytest.MonkeyPatch
) -> s3fs.S3FileSystem:
    """The domains on the server, which this test and its jobs reach through the proxy."""
    for name, value in object_store.environment(storage_proxy.endpoint).items():
        monkeypatch.setenv(name, value)
    direct = s3fs.S3FileSystem(endpoint_url=object_store.endpoint, skip_instance_cache=True)
    if not direct.exists(BUCKET):
        direct.mkdir(BUCKET)
    upload(direct, blocks)
    return direct


def upload(store: s3fs.S3FileSystem, root: Path) -> None:
    for path in sorted(root.glob("*/*")):
        if path.is_file():
            store.put_file(str(path), f"{BUCKET}/shards/{path.parent.name}/{path.name}")


def job(blocks: Path, folder: Path, run: str, remote: bool = True, **sections: dict[str, Any]) -> str:
    """A configuration in ``folder``, of data on the server or in the folder that was uploaded."""
    tree = tiny_config(blocks, folder / run, **(SECTIONS | sections))
    if remote:
        cache = {"folder": str(folder / "cache"), **tree["data"].get("cache", {})}
        tree["data"] |= {"root": f"s3://{BUCKET}/shards", "cache": cache}
    return str(write_config(folder / f"{run}.yaml", tree))


def computed(run: Path) -> list[Any]:
    """What a run computed at each step, from which samples, and the model that came of it."""
    lines = read_lines(run / "metrics" / "train.jsonl")
    steps = {line["step"]: (line["loss/total"], line["grad_norm"], line["samples/left"]) for line in lines}
    return [steps, (newest(run) / "model.safetensors").read_bytes()]


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def local(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The run from a folder."""
    folder = tmp_path_factory.mktemp("local")
    run_ranks(["train", job(blocks, folder, "run", remote=False)], ranks=1)
    return computed(folder / "run")


def test_faults_that_pass_change_nothing(
    store: s3fs.S3FileSystem,
    storage_proxy: FaultProxy,
    blocks: Path,
    tmp_path: Path,
    local: list[Any],
) -> None:
    """Latency, throttling, errors of the server, resets, bodies cut short, damage on the way."""
    shards = {"method": "GET", "path": f"/{BUCKET}/shards/*.tar"}
    storage_proxy.add(Latency(0.02, 0.1))
    storage_proxy.add(SLOW_DOWN, every=5)
    storage_proxy.add(Error(500, "InternalError"), every=7)
    storage_proxy.add(Error(502), every=11)
    storage_proxy.add(Reset(), every=13)
    storage_proxy.add(Reset(1000), every=3, times=2, **shards)
    storage_proxy.add(Cut(500), every=2, times=3, **shards)
    storage_proxy.add(Flip(2000), skip=1, times=1, **shards)
    run_ranks(["train", job(blocks, tmp_path, "run")], ranks=1)
    assert computed(tmp_path / "run") == local
    happened = {fault for request in storage_proxy.requests for fault in request.faults}
    assert len(happened) >= 5, happened


def test_ranks_and_workers_of_a_node_fetch_once(
    store: s3fs.S3FileSystem,
    storage_proxy: FaultProxy,
    blocks: Path,
    tmp_path: Path,
    local: list[Any],
) -> None:
    config = job(blocks, tmp_path, "run", data={"workers": 2})
    run_ranks(["train", config], ranks=2)
    fetched = [each.range for each in storage_proxy.requests if each.method == "GET" and ".tar" in each.path]
    assert len(fetched) == len(set(fetched)) > 0
    storage_proxy.forget()
    run_ranks(["train", job(blocks, tmp_path, "again")], ranks=1)
    assert storage_proxy.count("GET", "*.tar*") == 0, "the node holds all that the second job reads"
    assert storage_proxy.count("GET", "*.npy") == 0
    assert computed(tmp_path / "again") == local


def test_an_outage_ends_with_75_and_the_next_start_goes_on(
    store: s3fs.S3FileSystem, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    data = {"block": 1, "cache": {"ahead": 0}}
    faults, every_step = {"storage_s": 1.0}, {"every": 1}
    config = job(blocks, tmp_path, "run", data=data, faults=faults, checkpoint=every_step)
    with storage_proxy.rule(SLOW_DOWN, method="GET", path="*.tar*", skip=8):
        stopped = run_command(["train", config])
    assert stopped.returncode == 75, stopped.stderr
    assert "run the same command again when storage answers" in stopped.stdout + stopped.stderr
    assert run_command(["train", config]).returncode == 0
    undisturbed = job(blocks, tmp_path, "local", remote=False, data={"block": 1})
    run_ranks(["train", undisturbed], ranks=1)
    assert computed(tmp_path / "run") == computed(tmp_path / "local")


def test_credentials_that_run_out_are_waited_for(
    store: s3fs.S3FileSystem,
    storage_proxy: FaultProxy,
    blocks: Path,
    tmp_path: Path,
    local: list[Any],
) -> None:
    storage_proxy.add(EXPIRED, method="GET", path="*.tar*", skip=1, times=3)
    run_ranks(["train", job(blocks, tmp_path, "run")], ranks=1)
    assert computed(tmp_path / "run") == local


def test_refused_credentials_end_with_78_and_are_told_nowhere(
    store: s3fs.S3FileSystem, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    storage_proxy.add(Error(403, "AccessDenied"))
    ended = run_command(["train", job(blocks, tmp_path, "run")])
    said = ended.stdout + ended.stderr
    assert ended.returncode == 78, said
    assert "storage refuses to read s3://training-data/shards/left/domain.json" in said
    assert "AWS_ACCESS_KEY_ID" in said
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    for secret in (os.environ["AWS_SECRET_ACCESS_KEY"], os.environ["AWS_ACCESS_KEY_ID"]):
        assert secret not in said
        assert not any(secret.encode() in content for content in written)


def test_a_replaced_object_is_a_bad_sample(
    store: s3fs.S3FileSystem, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    name = next(path.name for path in (blocks / "left").glob("*.tar"))
    other = bytes(len((blocks / "left" / name).read_bytes()))
    key = f"{BUCKET}/shards/left/{name}"
    put = Do(lambda: store.pipe_file(key, other))
    storage_proxy.add(put, method="GET", path=f"*/left/{name}", times=1)
    lenient = {"max_bad_ratio": 1.0}
    ended = run_command(["train", job(blocks, tmp_path, "run", data=lenient)])
    said = ended.stdout + ended.stderr
    assert ended.returncode == 78, said
    assert "all 16 samples tried" in said
    assert "shard_changed" in said or "replaced while in use" in said, said


def test_slow_storage_is_not_taken_for_a_hang(
    store: s3fs.S3FileSystem,
    storage_proxy: FaultProxy,
    blocks: Path,
    tmp_path: Path,
    local: list[Any],
) -> None:
    """Ten requests of 0.8 s each come before the first batch, which takes longer than a phase may."""
    storage_proxy.add(Stall(0.8), method="GET", path="*.tar*")
    data = {"cache": {"ahead": 0}, "block": 1}
    config = job(blocks, tmp_path, "run", data=data, faults={"stall_s": 3.0})
    run_ranks(["train", config], ranks=1)
    slow = job(blocks, tmp_path, "local", remote=False, data={"block": 1})
    run_ranks(["train", slow], ranks=1)
    assert computed(tmp_path / "run") == computed(tmp_path / "local")


def test_evaluation_doctor_and_report_read_from_the_server(
    store: s3fs.S3FileSystem, blocks: Path, tmp_path: Path
) -> None:
    config = job(blocks, tmp_path, "run")
    assert run_command(["doctor", config]).returncode == 0
    run_ranks(["train", config], ranks=1)
    target = f"s3://{BUCKET}/shards/right"
    here = run_command(["evaluate", str(tmp_path / "run"), "--target", f"right={blocks / 'right'}", "--json"])
    there = run_command(["evaluate", str(tmp_path / "run"), "--target", f"right={target}", "--json"])
    assert here.returncode == there.returncode == 0, there.stderr
    assert here.stdout == there.stdout
    assert run_command(["report", str(tmp_path / "run")]).returncode == 0


def test_jobs_that_stop_break_and_are_killed_from_the_server(
    object_store: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests of jobs that stop, meet bad data, diverge and are killed, with their data in a bucket."""
    for name, value in object_store.environment().items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("resumed-data")
    monkeypatch.setenv("PPAR_TEST_BUCKET", "resumed-data")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    tests = Path(__file__).parents[1] / "faults"
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "tmp_path_retention_policy=all",  # looked through below
        *(str(tests / name) for name in AGAIN),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:]
    assert list(tmp_path.glob("**/.caches/*/domains/*/*/domain.json")), "they read from the server"

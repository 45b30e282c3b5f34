"""Whole training runs whose checkpoints go to a real object server as well."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from pathlib import Path

from ppar_dist.checkpoint import fetched_checkpoint, list_checkpoints, read_state, step_of, verify
from ppar_dist.checkpoint.owner import OWNER
from ppar_dist.checkpoint.remote import RemoteRun
from ppar_dist.run.audit import audit
from ppar_dist.storage.location import Remote
from ppar_dist.storage.remote import Storage
from tests.cluster.fault_proxy import FaultProxy
from tests.cluster.object_server import ObjectServer
from tests.cluster.storage_faults import Latency
from tests.cluster.test_remote_checkpoints import bucket
from tests.distributed.test_equivalence import Run
from tests.faults.jobs import job, last_step, ours, tiny_run
from tests.faults.test_elastic import assert_equal_up_to_rounding

__all__ = ["bucket"]

TRAIN = {"steps": 12, "global_batch": 6, "log_every": 1, "ledger": True}


def test_killed_and_its_folder_lost_it_resumes_from_the_remote_on_two_ranks(
    bucket: Remote, object_store: ObjectServer, blocks: Path, tmp_path: Path
) -> None:
    undisturbed, config = tiny_run(blocks, tmp_path / "undisturbed", train=TRAIN)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "undisturbed.log") as running:
        assert running.wait() == 0, running.output
    place, environment = bucket / "run", object_store.environment()
    keep = {"every": 3, "remote": place.url}
    run, config = tiny_run(blocks, tmp_path / "remote", train=TRAIN, checkpoint=keep, faults={"peer_s": 4})
    remote = RemoteRun(place, Storage(20.0))
    with job(ours("train", config, "--nproc", "1"), tmp_path / "first.log", **environment) as running:
        running.wait_for(lambda: [step for step in remote.steps() if step >= 3], "a checkpoint in the remote")
        running.process.send_signal(signal.SIGKILL)
        running.wait()
    safe = remote.steps()[-1]
    shutil.rmtree(run)
    with job(ours("train", config, "--nproc", "2"), tmp_path / "second.log", **environment) as running:
        assert running.wait() == 0, running.output
    assert f"from step-{safe:08d} on 2 ranks" in running.output
    assert_equal_up_to_rounding(Run(undisturbed), Run(run))
    found = audit(run)
    assert (found.problems, found.positions) == ([], 6 * 12)
    assert remote.steps()[-1] == 12
    last = fetched_checkpoint(place, "latest", Storage(20.0), tmp_path / "fetched")
    assert (step_of(last), verify(last)) == (12, [])
    assert json.loads((last / "state.json").read_text())["step"] == 12
    command = ours("evaluate", place.url, "--target", f"left={blocks / 'left'}", "--json")
    with job(command, tmp_path / "evaluate.log", **environment, TMPDIR=str(tmp_path)) as running:
        assert running.wait() == 0, running.output


def test_a_remote_that_fails_does_not_end_training(
    bucket: Remote, object_store: ObjectServer, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    """Refused connections from the first checkpoint on; the last checkpoint is sent when it answers again."""
    place, environment = bucket / "run", object_store.environment(storage_proxy.endpoint)
    keep, faults = {"every": 3, "remote": place.url}, {"storage_s": 1}
    run, config = tiny_run(blocks, tmp_path, train=TRAIN, checkpoint=keep, faults=faults)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log", **environment) as running:
        running.wait_for(lambda: (run / "metrics" / "train.jsonl").exists(), "a step")
        with storage_proxy.refusing():
            running.wait_for(lambda: "upload failed" in running.output, "a failed upload")
        assert running.wait() == 0, running.output
    assert f"{place} is behind" in running.output
    assert "training continues" in running.output
    assert RemoteRun(place, Storage(20.0)).steps()[-1] == 12


def test_a_last_checkpoint_that_did_not_arrive_is_sent_by_the_next_start(
    bucket: Remote, object_store: ObjectServer, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    place, environment = bucket / "run", object_store.environment(storage_proxy.endpoint)
    keep, faults = {"every": 3, "remote": place.url}, {"storage_s": 1, "peer_s": 4}
    run, config = tiny_run(blocks, tmp_path, train=TRAIN, checkpoint=keep, faults=faults)
    command = ours("train", config, "--nproc", "1")
    with job(command, tmp_path / "log", **environment) as running:
        running.wait_for(lambda: (run / "metrics" / "train.jsonl").exists(), "a step")
        with storage_proxy.refusing():
            assert running.wait() == 75, running.output
    assert "does not have the last checkpoint" in running.output
    with job(command, tmp_path / "again.log", **environment) as running:
        assert running.wait() == 0, running.output
    assert RemoteRun(place, Storage(20.0)).steps()[-1] == 12
    with job(command, tmp_path / "finished.log", **environment) as running:
        assert running.wait() == 0, running.output
    assert "already finished" in running.output


def test_a_start_that_is_refused_gives_the_remote_back(
    bucket: Remote, object_store: ObjectServer, blocks: Path, tmp_path: Path
) -> None:
    """Or the next start would wait for ``faults.peer_s`` of silence."""
    place, environment = bucket / "run", object_store.environment()
    keep, short = {"every": 3, "remote": place.url}, TRAIN | {"steps": 3}
    _, config = tiny_run(blocks, tmp_path, train=short, checkpoint=keep)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log", **environment) as running:
        assert running.wait() == 0, running.output
    before = json.loads(Storage(20.0).read(place / OWNER))
    with job(
        ours("train", config, "seed=5", "--nproc", "1"), tmp_path / "refused.log", **environment
    ) as running:
        assert running.wait() == 78, running.output
    assert "was started with another configuration" in running.output
    owner = json.loads(Storage(20.0).read(place / OWNER))
    assert owner["job"] != before["job"], "it had the place"
    assert owner["ended"]
    with job(ours("train", config, "--nproc", "1"), tmp_path / "again.log", **environment) as running:
        assert running.wait() == 0, running.output
    assert "waiting" not in running.output


def test_over_a_slow_line_all_that_is_kept_arrives_with_the_results(
    bucket: Remote, object_store: ObjectServer, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    """A checkpoint is due more often than one can be sent: those that wait follow at the end."""
    place, environment = bucket / "run", object_store.environment(storage_proxy.endpoint)
    keep = {"every": 1, "keep_every": 4, "keep_last": 2, "remote": place.url}
    sections = {"train": TRAIN | {"eval_every": 2}, "data": {"holdout": 0.25}}
    sections["targets"] = {"left": str(blocks / "left")}
    run, config = tiny_run(blocks, tmp_path, checkpoint=keep, **sections)
    storage_proxy.add(Latency(0.1, 0.1))
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log", **environment) as running:
        assert running.wait() == 0, running.output
    sent = [int(each) for each in re.findall(r"checkpoint of step (\d+) is in s3", running.output)]
    assert sent != sorted(sent), "some waited, and followed a newer one"
    best = read_state(list_checkpoints(run)[-1])["best_step"]
    kept = {best, 4, 8, 11, 12}  # run.dir may hold one more, which was being sent at the last save
    assert RemoteRun(place, Storage(20.0)).steps() == sorted(kept)
    fetched = fetched_checkpoint(place, "best", Storage(20.0), tmp_path / "fetched")
    assert (step_of(fetched), verify(fetched)) == (best, [])
    for name in ("results.json", "report.html"):
        assert Storage(20.0).read(place / name) == (run / name).read_bytes()


def test_at_a_preemption_the_last_upload_gets_what_the_grace_time_leaves(
    bucket: Remote, object_store: ObjectServer, storage_proxy: FaultProxy, blocks: Path, tmp_path: Path
) -> None:
    place, environment = bucket / "run", object_store.environment(storage_proxy.endpoint)
    train = TRAIN | {"steps": 1000}
    keep, grace_s = {"every": 0, "remote": place.url}, 24.0
    run, config = tiny_run(blocks, tmp_path, train=train, checkpoint=keep, faults={"grace_s": grace_s})
    remote, command = RemoteRun(place, Storage(20.0)), ours("train", config, "--nproc", "1")

    def preempted(name: str) -> tuple[str, float]:
        before = last_step(run)
        with job(command, tmp_path / name, **environment) as running:
            running.wait_for_step(run, before + 2)
            running.process.send_signal(signal.SIGTERM)
            began = time.monotonic()
            assert running.wait() == 75, running.output
            return running.output, time.monotonic() - began

    def newest() -> int:
        folder = list_checkpoints(run)[-1]
        assert verify(folder) == []
        return step_of(folder) or 0

    with storage_proxy.rule(Latency(0.2, 0.2)):
        output, _ = preempted("in-time.log")
    assert remote.steps() == [newest()], output
    with storage_proxy.rule(Latency(60.0, 60.0), method="PUT", path="*/blobs/*"):
        output, seconds = preempted("too-slow.log")
    assert "does not have the last checkpoint" in output
    assert seconds < grace_s
    late = newest()
    assert remote.steps()[-1] < late
    with job(command, tmp_path / "next.log", **environment) as running:
        running.wait_for(lambda: remote.steps()[-1] == late, "the checkpoint that did not arrive")
        running.process.send_signal(signal.SIGKILL)

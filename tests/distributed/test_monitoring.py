"""What the ranks of a real job serve while they train, and how they are found."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.ranks import TIMEOUT_S, Rank, read_lines, start_ranks, tiny_config, write_config
from tests.sabotage.pace import Pace

RANKS = 3
JOB_ID = "471108150815471108"  # longer than any number among the figures
# The contract: everything that is served, by name as Prometheus stores it, with its labels.
EVERY_RANK = {
    "ppar_rank_info": {"rank", "host"},
    "ppar_last_step_timestamp_seconds": set(),
    "ppar_last_progress_timestamp_seconds": set(),
    "ppar_data_wait_seconds_total": set(),
    "ppar_prototype_checksum": set(),
    "ppar_prototype_checksum_mismatches_total": set(),
}
RANK_0 = {
    "ppar_run_info": {"version", "run", "backbone", "method", "classes", "ranks"},
    "ppar_remote_checkpoint_step": set(),
    "ppar_alignment_stage": set(),
    "ppar_alignment_stage_start_ratio": {"stage"},
    "ppar_alignment_admitted_ratio": set(),
    "ppar_sample_weight_bucket": {"domain", "le"},
    "ppar_sample_weight_quantile": {"domain", "quantile"},
    "ppar_effective_sample_size_ratio": set(),
    "ppar_reliability": {"domain"},
    "ppar_trust": {"domain", "class"},
    "ppar_prototype_text_similarity": {"class"},
    "ppar_prototype_drift": {"class"},
    "ppar_prototype_cells_total": {"domain", "class"},
    "ppar_domain_discrepancy": set(),
    "ppar_loss": {"term"},
    "ppar_source_risk": {"domain"},
    "ppar_learning_rate": {"group"},
    "ppar_grad_norm": set(),
    "ppar_steps_total": set(),
    "ppar_skipped_steps_total": set(),
    "ppar_non_finite_streak": set(),
    "ppar_rollbacks_total": set(),
    "ppar_samples_total": {"domain"},
    "ppar_step_duration_seconds_bucket": {"le"},
    "ppar_images_per_second": set(),
    "ppar_goodput_ratio": set(),
    "ppar_progress_ratio": set(),
    "ppar_train_steps": set(),
    "ppar_checkpoint_interval_steps": set(),
    "ppar_checkpoint_duration_seconds_bucket": {"le"},
    "ppar_checkpoint_stall_seconds": set(),
    "ppar_checkpoint_last_success_timestamp_seconds": set(),
    "ppar_checkpoint_failures_total": set(),
    "ppar_resumes_total": set(),
    "ppar_miou": {"target"},
    "ppar_iou": {"target", "class"},
}
# Not here: ppar_mfu_ratio and ppar_device_memory_…, on machines where they are known.
ONLY_WHEN_IT_HAPPENS = {"ppar_bad_samples_total": {"domain", "reason"}}
PARTS = ("_bucket", "_sum", "_count")


class Live:
    """A job that trains, its ranks and their endpoints."""

    def __init__(self, processes: list[Rank], run: Path, targets: Path) -> None:
        self.processes, self.run, self.targets = processes, run, targets
        self.await_that(targets.exists, "file of targets")
        self.groups = json.loads(targets.read_text())
        self.bases = [f"http://{group['targets'][0]}" for group in self.groups]

    def scrape(self, rank: int) -> list[Any]:
        text = urllib.request.urlopen(f"{self.bases[rank]}/metrics", timeout=60).read().decode()
        return [s for family in text_string_to_metric_families(text) for s in family.samples]

    def value(self, rank: int, name: str) -> float:
        return next(s.value for s in self.scrape(rank) if s.name == name)

    def health(self, rank: int) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.bases[rank]}/healthz", timeout=60) as answer:
            assert answer.status == 200
            return json.load(answer)

    def await_that(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            for process in self.processes:
                if process.poll() is not None:
                    raise AssertionError(f"ended before {what}:\n{process.communicate()[0]}")
            assert time.monotonic() < deadline, f"no {what}"
            time.sleep(0.1)


def start(blocks: Path, folder: Path, ranks: int, module: tuple[str, ...], **monitoring: Any) -> Live:
    """A job that goes on until somebody ends it."""
    targets = folder / "targets" / "run.json"
    config = tiny_config(
        blocks,
        folder / "run",
        data={"holdout": 0.25},
        train={"steps": 100_000, "global_batch": 6, "log_every": 1, "eval_every": 4},
        checkpoint={"every": 5},
        monitoring={"enabled": True, "port": 0, "targets_file": str(targets), **monitoring},
        ppar={"alignment": {"boundaries": [0.0, 0.0, 0.0]}},  # from the start the pixel stage
    )
    arguments = ["train", str(write_config(folder / "config.yaml", config))]
    return Live(start_ranks(arguments, ranks, module), folder / "run", targets)


def end(live: Live) -> None:
    for process in live.processes:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def live(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SLURM_JOB_ID", JOB_ID)
        job = start(blocks, tmp_path_factory.mktemp("live"), RANKS, ("ppar_dist",))
    try:
        job.await_that(lambda: job.value(0, "ppar_steps_total") > 12, "steps")
        yield job
    finally:
        end(job)


def names_of(samples: list[Any]) -> dict[str, set[str]]:
    return {s.name: set(s.labels) for s in samples if s.name.startswith("ppar_")}


def test_rank_0_serves_the_whole_contract_and_nothing_beyond_it(live: Live) -> None:
    served = names_of(live.scrape(0))
    assert {name: served.get(name) for name in EVERY_RANK | RANK_0} == EVERY_RANK | RANK_0
    known = EVERY_RANK | RANK_0 | ONLY_WHEN_IT_HAPPENS
    families = {name.removesuffix("_bucket") for name in known if name.endswith("_bucket")}
    parts = {family + part for family in families for part in PARTS}
    assert served.keys() <= known.keys() | parts


@pytest.mark.parametrize("rank", range(1, RANKS))
def test_the_others_serve_themselves_alone(live: Live, rank: int) -> None:
    samples = live.scrape(rank)
    assert names_of(samples) == EVERY_RANK
    info = next(s.labels for s in samples if s.name == "ppar_rank_info")
    assert info == {"rank": str(rank), "host": socket.gethostname()}
    for name in ("ppar_last_step_timestamp_seconds", "ppar_last_progress_timestamp_seconds"):
        last = next(s.value for s in samples if s.name == name)
        assert 0 <= time.time() - last < TIMEOUT_S
    assert any(s.name == "process_resident_memory_bytes" for s in samples)


def test_speed_and_goodput_are_those_of_the_records(live: Live) -> None:
    found, now = {s.name: s.value for s in live.scrape(0)}, time.time()
    speeds = [6 / (record["seconds"] + record["data_wait"]) for record in train_lines(live.run)]
    assert min(speeds) <= found["ppar_images_per_second"] <= max(speeds)
    began = read_lines(live.run / "metrics" / "time.jsonl")[0]["time"]
    trained = sum(record["seconds"] for record in train_lines(live.run))  # a few steps more by now
    assert 0 < found["ppar_goodput_ratio"] < 1
    assert found["ppar_goodput_ratio"] == pytest.approx(trained / (now - began), rel=0.2)


def test_targets_name_every_rank_of_the_job(live: Live) -> None:
    assert [group["labels"] for group in live.groups] == [
        {"run": "run", "rank": str(rank), "job_id": JOB_ID} for rank in range(RANKS)
    ]
    assert len({group["targets"][0] for group in live.groups}) == RANKS
    assert all(group["targets"][0].startswith("127.0.0.1:") for group in live.groups)
    assert live.targets.stat().st_mode & 0o777 == 0o644


def test_a_healthy_rank_advances(live: Live) -> None:
    before = [live.health(rank) for rank in range(RANKS)]
    assert [found["rank"] for found in before] == list(range(RANKS))
    assert all(found["status"] == "ok" and found["seconds"] < found["limit_s"] for found in before)
    for rank, found in enumerate(before):
        live.await_that(lambda r=rank, f=found: live.health(r)["step"] > f["step"], "further step")


def test_other_paths_and_methods_are_refused(live: Live) -> None:
    for path, data, status in (("/", None, 404), ("/metrics/x", None, 404), ("/metrics", b"x", 501)):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(live.bases[0] + path, data, timeout=60)
        assert caught.value.code == status
        assert "Python" not in caught.value.headers["Server"]


def test_by_default_only_this_machine_is_listened_to(live: Live) -> None:
    ports = {int(group["targets"][0].rpartition(":")[2]) for group in live.groups}
    listening = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert {c.laddr.ip for c in listening if c.laddr.port in ports} == {"127.0.0.1"}


def test_nothing_of_the_environment_or_of_paths_is_told(live: Live) -> None:
    pages = [
        urllib.request.urlopen(base + path, timeout=60).read().decode()
        for base in live.bases
        for path in ("/metrics", "/healthz")
    ]
    for text in (str(live.run), os.environ["PATH"], JOB_ID):
        assert not any(text in page for page in pages)


def test_clients_that_only_wait_neither_stop_the_training_nor_a_scrape(live: Live) -> None:
    """Fifty say nothing, ten ask and do not read the answer, one sends its request a letter at a time."""
    host, port = live.bases[0].removeprefix("http://").split(":")
    idle = [socket.create_connection((host, int(port)), timeout=60) for _ in range(61)]
    try:
        for client in idle[50:60]:
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        step = live.health(0)["step"]
        for letter in b"GET /metrics HTTP":
            idle[60].send(bytes([letter]))
            live.await_that(lambda s=step: live.health(0)["step"] > s, "further step")
            step = live.health(0)["step"]
            assert live.value(0, "ppar_steps_total") > 0
        threads = psutil.Process(pid_of(live, 0)).num_threads()
    finally:
        for client in idle:
            client.close()
    assert threads < 80  # torch's own among them


def test_in_a_healthy_job_no_checksum_ever_differs(live: Live) -> None:
    assert [live.value(rank, "ppar_prototype_checksum_mismatches_total") for rank in range(RANKS)] == [0] * 3
    assert all(live.value(rank, "ppar_prototype_checksum") > 0 for rank in range(RANKS))
    assert "diverged" not in {event["kind"] for event in read_lines(live.run / "metrics" / "events.jsonl")}
    assert not any(key.startswith("checksum") for record in train_lines(live.run) for key in record)


def test_a_preempted_job_withdraws_its_targets(live: Live) -> None:
    """The last of these tests: the job ends."""
    for process in live.processes:
        process.send_signal(signal.SIGTERM)
    codes = [process.wait(TIMEOUT_S) for process in live.processes]
    assert codes == [75] * RANKS, [process.communicate()[0] for process in live.processes]
    assert not live.targets.exists()


def test_the_last_figures_and_the_scores_of_unseen_targets_are_served_until_they_are_fetched(
    blocks: Path, tmp_path: Path
) -> None:
    targets = tmp_path / "run.json"
    config = tiny_config(
        blocks,
        tmp_path / "run",
        train={"steps": 3, "global_batch": 6},
        monitoring={"enabled": True, "port": 0, "targets_file": str(targets), "linger_s": TIMEOUT_S},
        targets={"night": str(blocks / "right")},
    )
    hold = Pace(tmp_path / "hold", step=2)  # only who is watched before the end lingers
    arguments = ["train", str(write_config(tmp_path / "c.yaml", config))]
    processes = start_ranks(arguments, 1, ["tests.sabotage", hold.hold])
    job = Live(processes, tmp_path, targets)
    try:
        job.await_that(lambda: job.value(0, "ppar_steps_total") > 0, "steps")
        hold.release()
        scored: dict[str, float] = {}
        while job.processes[0].poll() is None:
            try:
                page = job.scrape(0)
            except (OSError, http.client.HTTPException):  # it ends
                continue
            scored |= {s.labels["target"]: s.value for s in page if s.name == "ppar_miou"}
            done = next(s.value for s in page if s.name == "ppar_progress_ratio")
    finally:
        end(job)
    assert job.processes[0].returncode == 0
    table = json.loads((tmp_path / "run" / "results.json").read_text())["targets"]
    assert scored == {"night": table["night"]["miou"]}
    assert done == 1
    assert not targets.exists()


def train_lines(run: Path) -> list[dict[str, Any]]:
    text = (run / "metrics" / "train.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def pid_of(live: Live, rank: int) -> int:
    return live.processes[rank].pid


def test_a_bit_that_flips_on_one_rank_is_counted_by_all_and_told_once(blocks: Path, tmp_path: Path) -> None:
    """Then the rank is killed: the other one's watchdog withdraws the targets."""
    job = start(blocks, tmp_path, 2, ("tests.sabotage", "flip=1,5"))
    name = "ppar_prototype_checksum_mismatches_total"
    try:
        for rank in range(2):
            job.await_that(lambda r=rank: job.value(r, name) >= 2, "mismatch")
        events = read_lines(job.run / "metrics" / "events.jsonl")
        job.processes[1].kill()
        assert job.processes[0].wait(TIMEOUT_S) == 75
        assert not job.targets.exists()
    finally:
        end(job)
    told = [(event["kind"], event["step"]) for event in events]
    assert told == [("diverged", 6)]  # step 6 is the first to be written down with it

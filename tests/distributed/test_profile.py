"""Real ranks that are profiled, and what they say of their speed: the run is the one it would have been."""

from __future__ import annotations

import gzip
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.run.goodput import read_goodput
from tests.ranks import TIMEOUT_S, read_lines, run_ranks, start_ranks, tiny_config, write_config
from tests.sabotage.pace import Pace

RANKS, BATCH, TFLOPS = 2, 6, 0.01
TRAIN = {"steps": 10, "global_batch": BATCH, "log_every": 1}


def configured(blocks: Path, folder: Path, steps: int, **sections: dict[str, Any]) -> str:
    """A run in ``folder``/run that profiles so many steps."""
    monitoring = {"enabled": False, "profile_steps": steps}
    tree = tiny_config(blocks, folder / "run", train=TRAIN, monitoring=monitoring, **sections)
    folder.mkdir(exist_ok=True)
    return str(write_config(folder / "config.yaml", tree))


@pytest.fixture(scope="module")
def plain(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    run_ranks(["train", configured(blocks, folder, 0, engine={"peak_tflops": TFLOPS})], RANKS)
    return folder / "run"


def tensors(run: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in run.glob("checkpoints/step-00000010/*.safetensors")}
    assert len(found) >= 3
    return found


def losses(run: Path) -> list[float]:
    return [record["loss/total"] for record in read_lines(run / "metrics" / "train.jsonl")]


def test_every_rank_traces_its_steps_and_computes_the_same(blocks: Path, plain: Path, tmp_path: Path) -> None:
    run_ranks(["train", configured(blocks, tmp_path, 3)], RANKS)
    run = tmp_path / "run"
    traces = sorted((run / "profile").iterdir())
    assert [path.name for path in traces] == [
        f"step-00000005.rank-0000{rank}.json.gz" for rank in range(RANKS)
    ]
    for path in traces:
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        names = [event.get("name", "") for event in events]
        steps = {name for name in names if name.startswith("ProfilerStep#")}
        assert steps == {"ProfilerStep#4", "ProfilerStep#5", "ProfilerStep#6"}  # its own count, from 0
        assert sum(name == "aten::convolution_backward" for name in names) % 3 == 0
        assert any("all_reduce" in name or "allreduce" in name for name in names)
    assert not (plain / "profile").exists()
    assert tensors(run) == tensors(plain)
    assert losses(run) == losses(plain)


def test_a_profiler_that_fails_is_a_warning(blocks: Path, plain: Path, tmp_path: Path) -> None:
    """A file is where the folder of traces should be."""
    config = configured(blocks, tmp_path, 2)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("")
    processes = start_ranks(["train", config], RANKS)
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, outputs
    for rank, output in enumerate(outputs):
        assert f"rank {rank} is not profiled: FileExistsError" in output
        assert "Traceback" not in output
    assert tensors(tmp_path / "run") == tensors(plain)


def test_a_run_that_ends_early_leaves_the_steps_it_had(blocks: Path, tmp_path: Path) -> None:
    run_ranks(["train", configured(blocks, tmp_path, 100)], 1)
    (path,) = (tmp_path / "run" / "profile").iterdir()
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    steps = {event["name"] for event in events if event.get("name", "").startswith("ProfilerStep#")}
    assert {f"ProfilerStep#{number}" for number in range(4, 10)} <= steps  # steps 5 to 10


def test_records_tell_the_speed_of_the_job(plain: Path) -> None:
    found = read_lines(plain / "metrics" / "train.jsonl")
    costs = set()
    for record in found:
        speed = BATCH / (record["seconds"] + record["data_wait"])
        assert record["images_per_second"] == pytest.approx(speed)
        costs.add(round(record["mfu"] * RANKS * TFLOPS * 1e12 / speed))
        assert "device_memory_peak" not in record
    (cost,) = costs  # FLOPs of an image
    assert 1e6 < cost < 1e9
    report = (plain / "report.html").read_text()
    for shown in ("% goodput", "images per second, median", "% MFU, median"):
        assert shown in report


def test_a_killed_run_counts_its_repeated_steps_once(blocks: Path, tmp_path: Path) -> None:
    """Of the log, which holds each step once, the sum of seconds: a reference of its own."""
    config = configured(blocks, tmp_path, 0, checkpoint={"every": 4})
    run, began = tmp_path / "run", time.time()
    hold = Pace(tmp_path / "hold", step=7)
    processes = start_ranks(["train", config], RANKS, ["tests.sabotage", hold.hold])
    log, spent = run / "metrics" / "train.jsonl", run / "metrics" / "time.jsonl"
    deadline = time.monotonic() + TIMEOUT_S
    while not (spent.exists() and [record["step"] for record in read_lines(spent)][-1:] == [7]):
        assert time.monotonic() < deadline  # a step is in this file after it is in the log
        time.sleep(0.05)
    lost = sum(record["seconds"] for record in read_lines(log) if record["step"] > 4)
    for process in processes:
        process.send_signal(signal.SIGKILL)
        process.wait()
    processes = start_ranks(["train", config], RANKS)
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, outputs

    found = read_goodput(spent)
    assert found is not None
    records = read_lines(log)
    assert [record["step"] for record in records] == list(range(1, 11))
    trained, wall = sum(record["seconds"] for record in records), time.time() - began
    assert found.trained_s == pytest.approx(trained, rel=1e-4)
    assert found.lost_s == pytest.approx(lost, rel=1e-4)
    assert found.began == pytest.approx(began, abs=2)  # the kernel tells a start to a second or so
    assert found.wall_s() < wall + 2
    assert f"goodput {100 * found.trained_s / found.wall_s():.1f} %: " in outputs[0]
    assert (
        f"{100 * found.trained_s / found.wall_s():.1f}</b><span>% goodput"
        in (run / "report.html").read_text()
    )

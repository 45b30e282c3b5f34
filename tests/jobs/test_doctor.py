"""The doctor beside real jobs: what it foretells is what training does, and it disturbs none."""

from __future__ import annotations

import contextlib
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.cli.parser import main
from tests.ranks import (
    TIMEOUT_S,
    free_port,
    run_command,
    run_ranks,
    start_ranks,
    tiny_config,
    wait_for_file,
    write_config,
)

ROADS = Path(__file__).parents[2] / "configs" / "roads.yaml"


def doctor(*arguments: object, code: int = 0) -> dict[str, Any]:
    """Checks by name; in this process, because starting one costs more than the checks."""
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(["doctor", *map(str, arguments), "--json"]) == code, out.getvalue()
    return {check["name"]: check for check in json.loads(out.getvalue())["checks"]}


@pytest.mark.parametrize("stage", [0, 1])
def test_the_size_of_a_checkpoint_is_foretold(blocks: Path, tmp_path: Path, stage: int) -> None:
    sections = {"train": {"steps": 1, "global_batch": 6}, "engine": {"zero_stage": stage}}
    config = write_config(tmp_path / "config.yaml", tiny_config(blocks, tmp_path / "run", **sections))
    foretold = doctor(config, "--quick")["space"]["facts"]["checkpoint_bytes"]
    run_ranks(["train", str(config)], 1)
    checks = doctor(config, "--quick")
    written = checks["space"]["facts"]["checkpoint_bytes"]
    assert checks["start"]["facts"]["checkpoint"] == "step-00000001"
    overhead = 100_000  # headers of tensors, generators
    assert foretold <= written <= 1.05 * foretold + overhead
    assert doctor(tmp_path / "run")["results"]["status"] == "ok"


def test_a_running_job_is_noticed_and_not_disturbed(blocks: Path, tmp_path: Path) -> None:
    sections = {
        "train": {"steps": 100_000, "global_batch": 6, "log_every": 1},
        "monitoring": {"enabled": True, "port": free_port()},
        "checkpoint": {"every": 5},
        "faults": {"peer_s": 5.0},
    }
    config = write_config(tmp_path / "config.yaml", tiny_config(blocks, tmp_path / "run", **sections))
    (job,) = start_ranks(["train", str(config)], 1)
    try:
        wait_for_file(tmp_path / "run" / "checkpoints" / "latest")
        checks = doctor(config, "--nproc", 1, "--quick")
        assert checks["other job"]["status"] == "warning"
        assert f"is in use by process {job.pid} on" in checks["other job"]["found"]
        assert "this run is being trained here already" in checks["metrics ports"]["found"]
        assert doctor(config, "--nproc", 1, "--quick", "run.dir=elsewhere", code=78)["metrics ports"]["found"]
        second = run_command(["train", str(config)])
        assert second.returncode == 78
        assert f"{tmp_path / 'run'} is in use by process {job.pid} on" in second.stderr
        before = last_step(tmp_path / "run")
        doctor(tmp_path / "run")
        wait_until_beyond(tmp_path / "run", before)
        assert job.poll() is None
    finally:
        job.kill()
        job.communicate()
    assert f"left by process {job.pid} on" in doctor(config, "--nproc", 1, "--quick")["other job"]["found"]
    assert not [path for path in (tmp_path / "run").iterdir() if "doctor" in path.name]


def test_a_refusal_is_a_page_on_stdout_and_no_traceback(blocks: Path, tmp_path: Path) -> None:
    config = str(write_config(tmp_path / "config.yaml", tiny_config(blocks, tmp_path / "run")))
    done = run_command(["doctor", config, "--nproc", "4", "--quick"])
    assert done.returncode == 78
    assert done.stdout.splitlines()[-1].endswith("fix the failures first")
    assert "FAILURE   batch" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_real_streets_are_ready_to_submit(real_data: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    arguments = ["--root", str(real_data / "data" / "camvid"), "--out", str(out), "--classes", "roads6"]
    assert run_command(["prepare", "camvid", *arguments, "--limit", "20"]).returncode == 0
    text = real_data / "weights" / "clip-vit-b-16-openai-text-multi.npz"
    common = [f"data.root={out}", f"run.dir={tmp_path / 'run'}", f"text.file={text}", "monitoring.port=0"]
    checks = doctor(ROADS, *common, f"targets.dusk={out / 'camvid_0001TP'}", "--nproc", 2)
    assert checks["classes"]["status"] == "ok"
    assert 0.2 < checks["classes"]["facts"]["pixel_ratio"]["camvid_0016E5"]["road"] < 0.6
    assert checks["overlap"]["found"] == "no sample occurs in two of the 4 domains"
    assert not (tmp_path / "run").exists()
    checks = doctor(ROADS, *common, f"targets.day={out / 'camvid_0006R0'}", "--nproc", 2, code=78)
    assert "source camvid_0006R0 and target day share 20 samples" in checks["overlap"]["found"]


def last_step(run: Path) -> int:
    log = (run / "metrics" / "train.jsonl").read_text().rpartition("\n")[0]
    return int(json.loads(log.splitlines()[-1])["step"])


def wait_until_beyond(run: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(run) <= step:
        assert time.monotonic() < deadline, f"the job stands at step {step}"
        time.sleep(0.05)

"""Steps without a finite result: skipped by all ranks together, and when they do not end, rolled back."""

from __future__ import annotations

import json
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.run.audit import audit
from tests.faults.jobs import job, ours, sabotaged, tiny_run
from tests.ranks import TIMEOUT_S, read_lines, start_ranks

BATCH = 6
TRAIN = {"steps": 14, "global_batch": BATCH, "log_every": 1, "ledger": True}


def run_poisoned(config: str, ranks: int, what: str, first: int, stop: int) -> list[str]:
    """Outputs of ranks of a job in which images at positions [first, stop) break what they touch."""
    module = ["tests.sabotage", f"poison={what},{first},{stop}"]
    processes = start_ranks(["train", config], ranks, module)
    outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * ranks, outputs
    return outputs


def tensors(run: Path, step: int) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / checkpoint.checkpoint_name(step)
    parts = {
        "model": checkpoint.read_model(folder),
        "moments": checkpoint.read_moments(folder),
        "method": load_file(folder / checkpoint.METHOD),
    }
    return {f"{part}/{key}": value for part, found in parts.items() for key, value in found.items()}


def state(run: Path) -> dict[str, Any]:
    newest = checkpoint.find_checkpoint(run)
    assert newest is not None
    return checkpoint.read_state(newest)


@pytest.mark.parametrize(("what", "stage"), [("loss", 2), ("gradient", 0), ("gradient", 2)])
def test_all_ranks_skip_the_step_of_one(blocks: Path, tmp_path: Path, what: str, stage: int) -> None:
    """Rank 1's last image of step 4: that step changes nothing at all, and the next ones go on."""
    sections = {"checkpoint": {"every": 1, "keep_last": 20}, "engine": {"zero_stage": stage}}
    run, config = tiny_run(blocks, tmp_path, train=TRAIN | {"steps": 7}, **sections)
    outputs = run_poisoned(config, 2, what, 3 * BATCH + 5, 3 * BATCH + 6)
    before, skipped, after = (tensors(run, step) for step in (3, 4, 5))
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert not all(torch.equal(skipped[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in tensors(run, 7).values())
    assert (state(run)["skipped"], state(run)["non_finite"], state(run)["samples_seen"]) == ([4], 0, 42)
    assert "step 4: skipped: the result was not finite" in outputs[0]
    events = read_lines(run / "metrics" / "events.jsonl")
    assert [(event["kind"], event["step"]) for event in events] == [("skipped", 4)]
    assert "skipped" in (run / "report.html").read_text()
    assert audit(run).problems == []


def test_a_streak_rolls_back_and_steps_over_the_data(blocks: Path, tmp_path: Path) -> None:
    """Steps 7 to 9 break; the checkpoint before is step 4's. A kill after the rollback changes nothing."""
    sections = {"checkpoint": {"every": 4, "keep_last": 20}, "faults": {"max_non_finite": 3}}
    first, stop = 6 * BATCH, 9 * BATCH
    finals = []
    for name, killed in (("whole", False), ("killed", True)):
        run, config = tiny_run(blocks, tmp_path / name, train=TRAIN, **sections)
        if killed:
            module = ["tests.sabotage", f"poison=loss,{first},{stop}"]
            processes = start_ranks(["train", config, "train.log_every=1"], 2, module)
            wait_for_rollback(run)
            for process in processes:
                process.send_signal(signal.SIGKILL)
                process.communicate()
        run_poisoned(config, 2, "loss", first, stop)
        found = state(run)
        assert found["step"] == 14
        rollback = {"at_step": 9, "to_step": 4, "first_position": 4 * BATCH, "stop_position": stop}
        assert found["rollbacks"] == [rollback]
        assert found["samples_seen"] == 14 * BATCH + found["stepped_over"]
        assert found["stepped_over"] == 5 * BATCH
        assert found["skipped"] == [7, 8, 9]
        proof = audit(run)
        assert (proof.problems, proof.stepped_over, proof.positions) == ([], 5 * BATCH, 14 * BATCH)
        steps = [record["step"] for record in read_lines(run / "metrics" / "train.jsonl")]
        assert steps == list(range(1, 15))
        assert "rolled back" in (run / "report.html").read_text()
        finals.append(tensors(run, 14))
    assert all(torch.equal(finals[0][key], finals[1][key]) for key in finals[0])


def wait_for_rollback(run: Path) -> None:
    """Until the checkpoint that the run went back to is written again."""
    path = run / "checkpoints" / checkpoint.checkpoint_name(4) / "state.json"
    for _ in range(20 * TIMEOUT_S):
        with suppress(OSError, ValueError):  # not there, or being replaced
            if json.loads(path.read_text())["rollbacks"]:
                return
        time.sleep(0.05)
    raise AssertionError("no rollback")


def test_the_checkpoint_to_go_back_to_outlives_those_of_the_streak(blocks: Path, tmp_path: Path) -> None:
    """One every step and only the last one kept: those within the streak are useless to go back to."""
    sections = {"checkpoint": {"every": 1, "keep_last": 1}, "faults": {"max_non_finite": 3}}
    run, config = tiny_run(blocks, tmp_path, train=TRAIN, **sections)
    run_poisoned(config, 1, "gradient", 6 * BATCH, 9 * BATCH)
    assert [(back["at_step"], back["to_step"]) for back in state(run)["rollbacks"]] == [(9, 6)]
    left = [checkpoint.step_of(folder) for folder in checkpoint.list_checkpoints(run)]
    assert left == [6, 14]  # the run goes on from the first, the second is its end


@pytest.mark.parametrize("limit", [0, 2])
def test_a_run_that_does_not_recover_ends(blocks: Path, tmp_path: Path, limit: int) -> None:
    """Everything from step 7 on breaks: each rollback goes further back, and the last one is not tried."""
    faults = {"max_non_finite": 2, "max_rollbacks": limit}
    sections = {"checkpoint": {"every": 2, "keep_last": 20}, "faults": faults}
    run, config = tiny_run(blocks, tmp_path, train=TRAIN, **sections)
    command = sabotaged(f"poison=loss,{6 * BATCH},1000000", "train", config)
    with job([*command, "--nproc", "1"], tmp_path / "log") as started:
        assert started.wait() == 78, started.output
    assert f"after {limit} rollbacks (faults.max_rollbacks); lower optim.lr" in started.output
    assert "Traceback" not in started.output
    assert [back["to_step"] for back in state(run)["rollbacks"]] == [6, 4][:limit]


def test_a_run_that_diverges_at_once_has_nothing_to_go_back_to(blocks: Path, tmp_path: Path) -> None:
    rates = {"lr": 1e30, "backbone_lr": 1e30, "clip_grad_norm": 0, "warmup_ratio": 0}
    _, config = tiny_run(blocks, tmp_path, train=TRAIN, optim=rates)
    with job(ours("train", config, "--nproc", "1"), tmp_path / "log") as started:
        assert started.wait() == 78, started.output
    assert "5 steps in a row up to step" in started.output
    assert "no checkpoint is older; lower optim.lr" in started.output

"""A run that is stopped and goes on at other numbers of ranks computes what an undisturbed one does."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.run.audit import audit
from tests.distributed.test_equivalence import Run, assert_near, assert_near_histogram
from tests.faults.jobs import last_step, tiny_run
from tests.ranks import TIMEOUT_S, Rank, start_ranks
from tests.sabotage.pace import Pace

STEPS = 30
STOPS = (5, 12, 20)  # steps after which a signal is sent
_TRAIN = {"steps": STEPS, "global_batch": 6, "log_every": 1}


def train(config: str, ranks: int, run: Path, stop_at: int | None = None, *more: str) -> str:
    """Train on ``ranks`` ranks, to the end or until a signal after step ``stop_at``; what rank 0 has said."""
    hold = [Pace(run.with_name("hold"), stop_at).hold] if stop_at is not None else []
    processes = start_ranks(["train", config, *more], ranks, ["tests.sabotage", *hold])
    try:
        if stop_at is not None:
            wait_for_step(processes, run, stop_at)
            for process in processes:
                process.send_signal(signal.SIGUSR1)
        outputs = [process.communicate(timeout=TIMEOUT_S)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    expected = 0 if stop_at is None else 75
    assert [process.returncode for process in processes] == [expected] * ranks, outputs
    return outputs[0]


def wait_for_step(processes: list[Rank], run: Path, step: int) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(run) < step:
        ended = [process.communicate()[0] for process in processes if process.poll() is not None]
        assert not ended, ended
        assert time.monotonic() < deadline, f"no step {step}"
        time.sleep(0.05)


def assert_equal_up_to_rounding(a: Run, b: Run) -> None:
    """The same samples at the same positions; numbers apart by what rounding becomes in 30 steps.

    It grows from 1e-6 to 1e-4 there, because a cell on the threshold of admission comes in or stays out.
    A state that is not restored (moments of zero, say) is apart by 1e-1.
    """
    for key in a.parameters:
        assert_near(a.parameters[key], b.parameters[key], key)
    assert_near_histogram(a.method["alignment.difficulty"], b.method["alignment.difficulty"])
    for key in a.method.keys() - {"alignment.difficulty"}:
        assert_near(a.method[key], b.method[key], key)
    for left, right in zip(a.steps, b.steps, strict=True):
        for key in ("loss/total", "loss/segmentation", "lr/head", "samples_seen", "stage"):
            assert left[key] == pytest.approx(right[key], rel=5e-3), (left["step"], key)
    for left, right in zip(a.samples, b.samples, strict=True):
        places = [[(s["position"], s["domain"], s["key"]) for s in side["samples"]] for side in (left, right)]
        assert places[0] == places[1]


@pytest.fixture(scope="module")
def undisturbed(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    run, config = tiny_run(blocks, folder, train=_TRAIN)
    train(config, 1, run)
    return Run(run)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_numbers_of_ranks(undisturbed: Run, blocks: Path, tmp_path: Path, stage: int) -> None:
    """1 → 2 → 3 → 1 ranks, each time in the middle."""
    run, config = tiny_run(blocks, tmp_path, train=_TRAIN | {"ledger": True}, engine={"zero_stage": stage})
    outputs = [train(config, ranks, run, stop) for ranks, stop in zip((1, 2, 3), STOPS, strict=True)]
    outputs.append(train(config, 1, run))
    assert "2 ranks instead of 1: global batch 6 and learning rate stay, accumulation is now 1" in outputs[1]
    assert_equal_up_to_rounding(undisturbed, Run(run))
    found = audit(run)
    assert (found.problems, found.positions, found.world_sizes) == ([], 6 * STEPS, [1, 2, 3, 1])
    assert found.repeated_steps == 0  # a stop loses nothing


def test_other_zero_stages_and_micro_batches(undisturbed: Run, blocks: Path, tmp_path: Path) -> None:
    """What fits the memory of the machine at hand is not a property of the run."""
    run, config = tiny_run(blocks, tmp_path, train=_TRAIN)
    train(config, 2, run, STOPS[0], "engine.zero_stage=2")
    output = train(config, 1, run, STOPS[1], "engine.zero_stage=0", "train.micro_batch=4")
    assert "accumulation is now 2: 1 ranks x 2 micro-batches x 3" in output
    train(config, 2, run, None, "engine.zero_stage=1", "train.micro_batch=2")
    assert_equal_up_to_rounding(undisturbed, Run(run))


FROZEN: dict[str, Any] = {
    "train": _TRAIN,
    "model": {
        "backbone": {
            "kind": "timm",
            "name": "test_convnext",
            "embed_dim": 16,
            "dense_stride": 8,
            "trainable": "none",
        },
        "decoder": {"width": 16},
    },
    "ppar": {
        "alignment": {"boundaries": [0.15, 0.35, 0.6]},
        "bank": {"teacher": "ema", "teacher_momentum": 0.9},
    },
}


@pytest.fixture(scope="module")
def undisturbed_frozen(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run, config = tiny_run(blocks, tmp_path_factory.mktemp("frozen"), **FROZEN)
    train(config, 1, run)
    return Run(run)


@pytest.mark.parametrize("stage", [0, 2])
def test_frozen_parameters_and_teachers(
    undisturbed_frozen: Run, blocks: Path, tmp_path: Path, stage: int
) -> None:
    """A frozen tower, whose parameters no optimiser knows, and a moving-average teacher."""
    run, config = tiny_run(blocks, tmp_path, **FROZEN, engine={"zero_stage": stage})
    train(config, 2, run, STOPS[0])
    train(config, 1, run)
    assert_equal_up_to_rounding(undisturbed_frozen, Run(run))
    first = load_file(checkpoint.list_checkpoints(run)[0] / "model.safetensors")
    frozen = [name for name in first if name.startswith("backbone.") and "project" not in name]
    last = Run(run).parameters
    assert any(torch.equal(first[name], last[name]) for name in frozen)

"""A run that is stopped and goes on at other numbers of ranks computes what an undisturbed one does."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.ledger import audit
from tests.distributed.test_equivalence import Run, assert_near_histogram
from tests.faults.jobs import job, ours, tiny_run

STEPS = 30
STOPS = (5, 12, 20)  # steps after which a signal is sent
_TRAIN = {"steps": STEPS, "global_batch": 6, "log_every": 1}


def train(config: str, ranks: int, folder: Path, run: Path, stop_at: int | None = None, *more: str) -> str:
    """Train on ``ranks`` ranks until a signal, sent once step ``stop_at`` is done; returns the output."""
    with job(
        ours("train", config, "--nproc", str(ranks), *more), folder / f"log-{ranks}-{stop_at}"
    ) as started:
        if stop_at is not None:
            started.wait_for_step(run, stop_at)
            started.process.send_signal(signal.SIGUSR1)
        assert started.wait() == (0 if stop_at is None else 75), started.output
        return started.output


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


def assert_near(a: torch.Tensor, b: torch.Tensor, name: str) -> None:
    """Apart by at most 0.2 % of the largest value."""
    scale = float(a.double().abs().max())
    assert float((a.double() - b.double()).abs().max()) <= 2e-3 * scale + 1e-4, name


@pytest.fixture(scope="module")
def undisturbed(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("undisturbed")
    run, config = tiny_run(blocks, folder, train=_TRAIN)
    train(config, 1, folder, run)
    return Run(run)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_other_numbers_of_ranks(undisturbed: Run, blocks: Path, tmp_path: Path, stage: int) -> None:
    """1 → 2 → 3 → 1 ranks, each time in the middle."""
    run, config = tiny_run(blocks, tmp_path, train=_TRAIN | {"ledger": True}, engine={"zero_stage": stage})
    outputs = [
        train(config, ranks, tmp_path, run, stop) for ranks, stop in zip((1, 2, 3), STOPS, strict=True)
    ]
    outputs.append(train(config, 1, tmp_path, run))
    assert "2 ranks instead of 1: global batch 6 and learning rate stay, accumulation is now 1" in outputs[1]
    assert_equal_up_to_rounding(undisturbed, Run(run))
    found = audit(run)
    assert (found.problems, found.positions, found.world_sizes) == ([], 6 * STEPS, [1, 2, 3, 1])
    assert found.repeated_steps == 0  # a stop loses nothing


def test_other_zero_stages_and_micro_batches(undisturbed: Run, blocks: Path, tmp_path: Path) -> None:
    """What fits the memory of the machine at hand is no property of the run."""
    run, config = tiny_run(blocks, tmp_path, train=_TRAIN)
    train(config, 2, tmp_path, run, STOPS[0], "engine.zero_stage=2")
    output = train(config, 1, tmp_path, run, STOPS[1], "engine.zero_stage=0", "train.micro_batch=4")
    assert "accumulation is now 2: 1 ranks x 2 micro-batches x 3" in output
    train(config, 2, tmp_path, run, None, "engine.zero_stage=1", "train.micro_batch=2")
    assert_equal_up_to_rounding(undisturbed, Run(run))


@pytest.mark.parametrize("stage", [0, 2])
def test_frozen_parameters_and_teachers(blocks: Path, tmp_path: Path, stage: int) -> None:
    """A frozen tower, whose parameters no optimiser knows, and a moving-average teacher."""
    whole, resized = tmp_path / "whole", tmp_path / "resized"
    sections: dict[str, Any] = {"train": _TRAIN, "engine": {"zero_stage": stage}}
    backbone = {
        "kind": "timm",
        "name": "test_convnext",
        "embed_dim": 16,
        "dense_stride": 8,
        "trainable": "none",
    }
    sections["model"] = {"backbone": backbone, "decoder": {"width": 16}}
    sections["ppar"] = {
        "alignment": {"boundaries": [0.15, 0.35, 0.6]},
        "bank": {"teacher": "ema", "teacher_momentum": 0.9},
    }
    runs = {folder: tiny_run(blocks, folder, **sections) for folder in (whole, resized)}
    train(runs[whole][1], 1, whole, runs[whole][0])
    run, config = runs[resized]
    train(config, 2, resized, run, STOPS[0])
    train(config, 1, resized, run)
    assert_equal_up_to_rounding(Run(runs[whole][0]), Run(run))
    first = load_file(checkpoint.list_checkpoints(run)[0] / "model.safetensors")
    frozen = [name for name in first if name.startswith("backbone.") and "project" not in name]
    last = Run(run).parameters
    assert any(torch.equal(first[name], last[name]) for name in frozen)

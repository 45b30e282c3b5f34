"""1 = N: the same run on 1, 2 and 3 real gloo ranks gives the same everything, up to the rounding of sums."""

from __future__ import annotations

from pathlib import Path
from shutil import rmtree, which
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.ranks import (
    exchange_labels,
    read_lines,
    run_ranks,
    tiny_config,
    write_blocks_domain,
    write_config,
)

# fp32 sums in another order, carried through 8 steps of AdamW.
_RELATIVE, _ABSOLUTE = 2e-3, 2e-4
_OF_GRADIENT = 1e-2  # a pixel on the edge of a threshold has one or none
_DATA = {"data": {"sources": ["left", "right", "mixed"]}}
_HISTOGRAM, _TRUST = "alignment.difficulty", "reweighting.trust"


class Run:
    """What a finished run left behind."""

    def __init__(self, folder: Path) -> None:
        checkpoint = max((folder / "checkpoints").glob("step-*"))
        self.parameters = load_file(checkpoint / "model.safetensors")
        self.method = load_file(checkpoint / "ppar.safetensors")
        self.steps = read_lines(folder / "metrics" / "train.jsonl")
        self.samples = read_lines(folder / "metrics" / "samples.jsonl")


def train(root: Path, folder: Path, ranks: int, **sections: dict[str, Any]) -> Run:
    """Train the tiny configuration on ``ranks`` ranks."""
    config = write_config(folder.with_suffix(".yaml"), tiny_config(root, folder, **{**_DATA, **sections}))
    run_ranks(["train", str(config)], ranks)
    return Run(folder)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sources that agree, one with a rare class, and one that contradicts in half of its images."""
    root = tmp_path_factory.mktemp("sources")
    write_blocks_domain(root / "left", samples=8, seed=1, rare_in=3)
    write_blocks_domain(root / "right", samples=4, seed=2, rare_in=None)
    write_blocks_domain(root / "third", samples=4, seed=3, rare_in=None)
    exchange_labels(root / "third", root / "mixed", every=2)
    return root


@pytest.fixture(scope="module")
def one_rank(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(sources, tmp_path_factory.mktemp("one") / "run", 1)


def assert_same(a: Run, b: Run) -> None:
    """Losses, weights, prototypes and parameters agree."""
    for key in a.parameters:
        assert_near(a.parameters[key], b.parameters[key], key)
    assert_near_histogram(a.method[_HISTOGRAM], b.method[_HISTOGRAM])
    for key in a.method.keys() - {_HISTOGRAM}:
        assert_near(a.method[key], b.method[key], key)
    for left, right in zip(a.steps, b.steps, strict=True):
        compared = {
            k
            for k in left
            if k.startswith(("loss/", "risk/", "weight/", "trust/", "ess", "prototype", "grad_norm"))
        }
        assert {"loss/total", "grad_norm"} <= compared
        for key in compared:
            relative = _OF_GRADIENT if key == "grad_norm" else _RELATIVE
            assert left[key] == pytest.approx(right[key], rel=relative, abs=_ABSOLUTE), (left["step"], key)
    for left, right in zip(a.samples, b.samples, strict=True):
        for x, y in zip(left["samples"], right["samples"], strict=True):
            assert (x["domain"], x["key"], x["position"]) == (y["domain"], y["key"], y["position"])
            assert x["weight"] == pytest.approx(y["weight"], rel=_RELATIVE)


def assert_near(a: torch.Tensor, b: torch.Tensor, name: str) -> None:
    """Apart by at most 0.2 % of the largest value: what is rounded is sums; elements may come near 0."""
    scale = float(a.double().abs().max())
    assert float((a.double() - b.double()).abs().max()) <= _RELATIVE * scale + _ABSOLUTE, name


def assert_near_histogram(a: torch.Tensor, b: torch.Tensor) -> None:
    """Rounding may only move a cell at the edge of two bins."""
    torch.testing.assert_close(a.sum(), b.sum(), rtol=_RELATIVE, atol=_ABSOLUTE)
    assert (a - b).abs().sum() <= 0.02 * a.sum()


def test_the_run_passes_through_every_stage_and_reweights(one_rank: Run) -> None:
    assert {step["stage"] for step in one_rank.steps} == {0, 1, 2, 3}
    weights = [sample["weight"] for step in one_rank.samples for sample in step["samples"]]
    assert max(weights) - min(weights) > 0.05


def test_the_source_that_contradicts_is_trusted_less(one_rank: Run) -> None:
    trust = one_rank.method[_TRUST]
    assert (trust[:2] == 1).all()
    assert ((trust[2, :2] > 0.1) & (trust[2, :2] < 0.9)).all()
    assert (trust[2, 2:] == 1).all()
    for step in one_rank.steps:
        assert step["trust/mixed/road"] == pytest.approx(float(trust[2, 0]))
        assert step["trust/left/road"] == 1


def test_a_class_of_a_single_image_is_in_the_bank(one_rank: Run) -> None:
    """At most one rank sees class 5 in a step, so the comparison below covers such a class."""
    cells = one_rank.method["bank.cells_total"]
    assert cells[0, 5] > 0
    assert cells[1, 5] == 0


@pytest.mark.parametrize("ranks", [2, 3])
def test_more_ranks_compute_the_same(one_rank: Run, sources: Path, tmp_path: Path, ranks: int) -> None:
    assert_same(one_rank, train(sources, tmp_path / "run", ranks))


def test_accumulation_and_loader_workers_compute_the_same(
    one_rank: Run, sources: Path, tmp_path: Path
) -> None:
    sections = {
        "train": {"steps": 8, "global_batch": 6, "log_every": 1, "micro_batch": 1},
        "data": {**_DATA["data"], "workers": 2},
    }
    assert_same(one_rank, train(sources, tmp_path / "run", 2, **sections))


@pytest.mark.parametrize("stage", [1, 2])
def test_zero_stages_compute_the_same(one_rank: Run, sources: Path, tmp_path: Path, stage: int) -> None:
    assert_same(one_rank, train(sources, tmp_path / "run", 2, engine={"zero_stage": stage}))


@pytest.mark.skipif(which("g++") is None, reason="torch.compile needs g++ on CPUs")
def test_compiled_and_recomputed_parts_compute_the_same(one_rank: Run, sources: Path, tmp_path: Path) -> None:
    """On one rank: compiling takes a core for half a minute."""
    sections = _checkpointing(sources, tmp_path)
    assert_same(one_rank, train(sources, tmp_path / "run", 1, engine={"compile": True}, **sections))


def _checkpointing(sources: Path, folder: Path) -> dict[str, Any]:
    model = tiny_config(sources, folder / "run")["model"]
    return {"model": {**model, "backbone": {**model["backbone"], "checkpointing": True}}}


def test_a_resumed_run_keeps_its_trust_and_looks_at_nothing_again(
    one_rank: Run, sources: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    train(sources, folder, 1, checkpoint={"every": 4})
    rmtree(folder / "checkpoints" / "step-00000008")
    changed = ["ppar.reweighting.trust.gamma=0", "--accept-changes"]  # a new survey would trust all
    run_ranks(["train", str(folder.with_suffix(".yaml")), *changed], 2)
    assert_same(one_rank, Run(folder))


def test_bf16_trains_and_stays_near_fp32(sources: Path, tmp_path: Path) -> None:
    """Resumed with it: begun with it, a run is refused on a machine without instructions for bf16."""
    clean = {"sources": ["left", "right"]}  # with contradicting labels the two soon part
    folder, sections = (
        tmp_path / "run",
        {"data": clean, "engine": {"zero_stage": 2}, "checkpoint": {"every": 2, "keep_last": 9}},
    )
    exact = train(sources, folder, 2, **sections)
    for step in (4, 6, 8):
        rmtree(folder / "checkpoints" / f"step-{step:08}", ignore_errors=True)
    changed = ["engine.precision=bf16", "--accept-changes"]
    run_ranks(["train", str(folder.with_suffix(".yaml")), *changed], 2)
    run = Run(folder)
    for left, right in zip(exact.steps, run.steps, strict=True):
        assert left["loss/total"] == pytest.approx(right["loss/total"], rel=0.1)
    assert [each["loss/total"] for each in exact.steps[2:]] != [each["loss/total"] for each in run.steps[2:]]
    assert all(value.dtype != torch.bfloat16 for value in run.parameters.values())

"""1 = N: the same run on 1, 2 and 3 real gloo ranks gives the same everything, up to the rounding of sums."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree, rmtree, which
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist.config.load import load_config
from ppar_dist.evaluation.prototypes import final_cosines
from ppar_dist.run.facts import finished
from ppar_dist.training.plan import make_plan
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
_LIKELIHOOD = "reweighting.likelihood"


class Run:
    """What a finished run left behind."""

    def __init__(self, folder: Path) -> None:
        checkpoint = max((folder / "checkpoints").glob("step-*"))
        self.parameters = load_file(checkpoint / "model.safetensors")
        self.method = load_file(checkpoint / "ppar.safetensors")
        self.steps = read_lines(folder / "metrics" / "train.jsonl")
        self.samples = read_lines(folder / "metrics" / "samples.jsonl")


def train(
    root: Path, folder: Path, ranks: int, init_from: Path | None = None, **sections: dict[str, Any]
) -> Run:
    """Train the tiny configuration on ``ranks`` ranks."""
    tree = tiny_config(root, folder, **{**_DATA, **sections})
    tree |= {"init_from": str(init_from)} if init_from is not None else {}
    config = write_config(folder.with_suffix(".yaml"), tree)
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
    likelihood = one_rank.method[_LIKELIHOOD]
    own = torch.eye(6)
    assert torch.equal(likelihood[:2], own.repeat(2, 1, 1))
    assert ((likelihood[2] - own)[:2, :2].abs() > 0.05).any()
    assert torch.equal(likelihood[2, 2:], own[2:])
    for step in one_rank.steps:
        assert step["trust/mixed/road"] == pytest.approx(float(trust[2, 0]))
        assert step["trust/left/road"] == 1


def test_labels_of_that_source_are_read_by_their_likelihood(
    one_rank: Run, sources: Path, tmp_path: Path
) -> None:
    """Beside a run that trusts all: the first step begins with the same weights."""
    ppar = tiny_config(sources, tmp_path / "run")["ppar"]
    weighing = {**ppar["reweighting"], "trust": {"enabled": True, "gamma": 0.0}}
    trusting = train(sources, tmp_path / "run", 1, ppar={**ppar, "reweighting": weighing})
    read, plain = one_rank.steps[0], trusting.steps[0]
    assert read["risk/mixed"] < 0.98 * plain["risk/mixed"]
    for name in ("risk/left", "risk/right"):
        assert read[name] == pytest.approx(plain[name], rel=1e-5)


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


def test_adapters_layer_decay_and_averages_compute_the_same(sources: Path, tmp_path: Path) -> None:
    """On 1 and 2 ranks, resumed bit for bit, and resumed on 2 ranks with another ZeRO stage."""
    sections = _fine_tuning(sources, tmp_path)
    whole = train(sources, tmp_path / "whole", 1, **sections)
    frozen = {name for name in whole.parameters if ".tower." in name and "lora_" not in name}
    first = load_file(tmp_path / "whole" / "checkpoints" / "step-00000004" / "model.safetensors")
    assert all(torch.equal(first[name], whole.parameters[name]) for name in frozen)
    assert {first[name].dtype for name in frozen if first[name].ndim == 4} == {torch.bfloat16}
    assert any(float(each.abs().max()) > 0 for name, each in whole.parameters.items() if "lora_B" in name)
    moved = [name for name in whole.method if name.startswith("average.") and "lora_B" in name]
    assert moved
    assert not torch.equal(whole.method[moved[0]], whole.parameters[moved[0].removeprefix("average.")])
    assert_same(whole, train(sources, tmp_path / "two", 2, engine={"zero_stage": 1}, **sections))
    exact = _from_step_4(tmp_path / "whole", tmp_path / "exact", 1)
    for key, value in whole.parameters.items() | whole.method.items():
        assert torch.equal(value, (exact.parameters | exact.method)[key]), key
    assert_same(whole, _from_step_4(tmp_path / "whole", tmp_path / "other", 2, "engine.zero_stage=2"))


def _fine_tuning(sources: Path, folder: Path) -> dict[str, Any]:
    model = tiny_config(sources, folder / "run")["model"]
    lora = {"trainable": "lora", "lora": {"rank": 2, "alpha": 4.0}, "frozen_dtype": "bfloat16"}
    return {
        "model": {**model, "backbone": {**model["backbone"], **lora}},
        "data": {"rare_classes": {"enabled": True, "temperature": 0.5, "min_pixels": 50}},
        "augment": {"random_convolution": 0.5, "cat_max_ratio": 0.6, "style_exchange": 0.5},
        "optim": {"layer_decay": 0.7},
        "train": {"weight_average": 0.8},
        "checkpoint": {"every": 4},
    }


def _from_step_4(before: Path, folder: Path, ranks: int, *changed: str) -> Run:
    """A copy of a run that loses its last checkpoint and goes on."""
    copytree(before, folder)
    rmtree(folder / "checkpoints" / "step-00000008")
    run_ranks(["train", str(before.with_suffix(".yaml")), f"run.dir={folder}", *changed], ranks)
    return Run(folder)


def test_a_run_that_stops_early_is_finished_and_another_begins_with_it(sources: Path, tmp_path: Path) -> None:
    """On 1 and 2 ranks at the same step, with both scores; a restart of it trains nothing."""
    sections = {
        "data": {"sources": ["left", "right"], "holdout": 0.25},
        "train": {"eval_every": 2, "weight_average": 0.5, "stop_early": {"patience": 1, "min_delta": 1.0}},
        "targets": {"mixed": str(sources / "mixed")},
    }
    one, two = tmp_path / "one", tmp_path / "two"
    assert_same(train(sources, one, 1, **sections), train(sources, two, 2, **sections))
    for folder in (one, two):
        evaluations = read_lines(folder / "metrics" / "eval.jsonl")
        assert [each["step"] for each in evaluations] == [2, 4, 4]  # again with the classifiers' last fit
        assert evaluations[0]["averaged"]["miou"] != evaluations[0]["miou"]
        event = read_lines(folder / "metrics" / "events.jsonl")[-1]
        assert (event["kind"], event["step"]) == ("ended early", 4)
        assert "in 1 evaluation in a row since it was" in event["text"]
        assert "the best checkpoint is step-0000000" in event["text"]
        results = (folder / "results.json").read_text()
        assert '"step-00000004"' in results
        assert "averaged weights" in results
    config = load_config(one / "config.yaml")
    assert final_cosines(one, config) is not None
    assert finished(config, make_plan(config, 1).facts) == "step-00000004"
    before = (one / "checkpoints" / "step-00000004" / "manifest.json").stat()
    run_ranks(["train", str(one.with_suffix(".yaml"))], 2)
    assert (one / "checkpoints" / "step-00000004" / "manifest.json").stat() == before
    assert [step["step"] for step in read_lines(one / "metrics" / "train.jsonl")] == [1, 2, 3, 4]
    next_run = tmp_path / "next"
    train(sources, next_run, 2, train={"steps": 2}, init_from=one)
    first = read_lines(next_run / "metrics" / "events.jsonl")[0]
    assert (first["kind"], first["step"]) == ("started from", 0)
    assert f"weights of {one}, step-00000004: " in first["text"]
    rmtree(one)  # a resume needs it no more
    run_ranks(["train", str(next_run.with_suffix(".yaml"))], 1)


def test_a_refit_that_a_finished_run_is_asked_for_is_that_of_a_run_that_had_it(
    sources: Path, tmp_path: Path
) -> None:
    """Of the averaged weights, too; asked for once more nothing is left to do."""
    sections = {
        "data": {"sources": ["left", "right"], "holdout": 0.25},
        "model": {**tiny_config(sources, tmp_path)["model"], "classifier": "linear"},
        "train": {"steps": 2, "weight_average": 0.5},
    }
    off, on = ({"linear": linear, "prototypes": False, "images": 4} for linear in (False, True))
    whole = train(sources, tmp_path / "whole", 1, refit=on, **sections)
    before = train(sources, tmp_path / "late", 1, refit=off, **sections)
    asked = ["train", str(tmp_path / "late.yaml"), "refit.linear=true", "--accept-changes"]
    run_ranks(asked, 2)
    late = Run(tmp_path / "late")
    for key, value in whole.parameters.items() | whole.method.items():
        assert torch.equal(value, (late.parameters | late.method)[key]), key
    assert not torch.equal(before.parameters["linear.weight"], late.parameters["linear.weight"])
    assert [line["step"] for line in read_lines(tmp_path / "late" / "metrics" / "eval.jsonl")] == [2, 2]
    written = (tmp_path / "late" / "checkpoints" / "step-00000002" / "manifest.json").stat()
    run_ranks(asked, 2)
    assert (tmp_path / "late" / "checkpoints" / "step-00000002" / "manifest.json").stat() == written


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

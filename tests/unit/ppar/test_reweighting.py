"""Reliability, weights and their moving statistics against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from ppar_dist.config.method_section import ReweightingConfig
from ppar_dist.ppar.cells import unit
from ppar_dist.ppar.reweighting import (
    WEIGHT_EDGES,
    MovingMoments,
    effective_sample_size,
    raw_weights,
    reliability,
    weight_histogram,
)

CONFIG = ReweightingConfig(beta=0.7, min=0.3, max=2.5, momentum=0.8, min_spread=0.5)


def test_reliability_is_the_loop_over_classes() -> None:
    torch.manual_seed(0)
    pooled = unit(torch.randn(3, 4, 6, dtype=torch.float64))
    present = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.bool)
    prototypes = unit(torch.randn(4, 6, dtype=torch.float64))
    r, valid = reliability(pooled, present, prototypes, 0.2)
    for i in range(3):
        logs = []
        for k in range(4):
            if present[i, k]:
                exps = [math.exp(float((pooled[i, k] * prototypes[j]).sum()) / 0.2) for j in range(4)]
                logs.append(math.log(exps[k] / sum(exps)))
        assert bool(valid[i]) == bool(logs)
        assert float(r[i]) == pytest.approx(sum(logs) / len(logs) if logs else 0.0)


def test_raw_weights_are_the_loop_and_clip() -> None:
    r = torch.tensor([-9.0, -2.0, -1.5, -1.0, 5.0, 1e6], dtype=torch.float64)
    found = raw_weights(r, -1.5, 0.8, CONFIG).tolist()
    expected = [min(2.5, max(0.3, math.exp(min(700.0, 0.7 * (x + 1.5) / 0.8)))) for x in r.tolist()]
    assert found == pytest.approx(expected)
    assert found[0] == 0.3
    assert found[-1] == 2.5
    assert found[2] == 1.0


def test_below_the_smallest_spread_differences_count_in_its_units() -> None:
    """Samples that hardly differ keep weights near 1 instead of being spread to unit variance."""
    r = torch.tensor([-1.2, -1.0, -1.0 + 1e-6], dtype=torch.float64)
    expected = [math.exp(0.7 * -0.2 / 0.5), 1.0, 1.0]
    assert raw_weights(r, -1.0, 0.1, CONFIG).tolist() == pytest.approx(expected, abs=1e-5)
    assert raw_weights(r, -1.0, 0.0, CONFIG).tolist() == pytest.approx(expected, abs=1e-5)


def test_moments_are_the_loop_over_batches() -> None:
    torch.manual_seed(1)
    moving = MovingMoments(CONFIG.momentum)
    assert moving.moments().mean is None
    assert moving.moments().mean_weight is None
    sums = {name: 0.0 for name in ("r", "rr", "n", "u", "nu")}
    for step in range(6):
        r = [] if step == 2 else (torch.randn(5).double() - 1).tolist()  # nothing valid in batch 2
        u = [] if step < 3 else torch.rand(4).double().tolist()  # raw weights come later
        moving.fold(sum(r), sum(x * x for x in r), len(r), sum(u), len(u))
        if r:
            for name, value in (("r", sum(r)), ("rr", sum(x * x for x in r)), ("n", len(r))):
                sums[name] = 0.8 * sums[name] + 0.2 * value
        if u:
            for name, value in (("u", sum(u)), ("nu", len(u))):
                sums[name] = 0.8 * sums[name] + 0.2 * value
        found, mean = moving.moments(), sums["r"] / sums["n"]
        assert found.mean == pytest.approx(mean)
        assert found.spread == pytest.approx(math.sqrt(sums["rr"] / sums["n"] - mean**2))
        assert found.mean_weight == (pytest.approx(sums["u"] / sums["nu"]) if sums["nu"] else None)


def test_a_steady_stream_has_weights_of_mean_one() -> None:
    torch.manual_seed(2)
    moving, weights = MovingMoments(0.95), []
    for step in range(400):
        r, now = torch.randn(16).double() - 2, moving.moments()
        if now.mean is None or now.spread is None:
            u = r[:0]
        else:
            u = raw_weights(r, now.mean, now.spread, CONFIG)
            if step > 100 and now.mean_weight:
                weights.append(u / now.mean_weight)
        moving.fold(float(r.sum()), float((r**2).sum()), len(r), float(u.sum()), len(u))
    assert float(torch.cat(weights).mean()) == pytest.approx(1.0, abs=0.01)


def test_effective_sample_size() -> None:
    assert effective_sample_size(4 * 0.7, 4 * 0.49) == pytest.approx(4)
    assert effective_sample_size(3.0, 9.0) == 1
    assert effective_sample_size(1 + 2 + 3, 1 + 4 + 9) == pytest.approx(36 / 14)
    assert effective_sample_size(0.0, 0.0) == 0


def test_weight_histogram_counts_up_to_and_including_an_edge() -> None:
    weights = torch.tensor([0.05, 1.0, 1.0001, 99.0])
    bins = weight_histogram(weights).argmax(1).tolist()
    one = WEIGHT_EDGES.index(1.0)
    assert bins == [0, one, one + 1, len(WEIGHT_EDGES)]

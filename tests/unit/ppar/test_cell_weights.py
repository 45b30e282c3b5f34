"""Weights of cells and their moving means, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from ppar_dist.config.schema import CellWeightsConfig
from ppar_dist.ppar.cell_weights import MovingWeights, by_class, raw_weights, relative_weights


def test_raw_weights_fall_with_distrust_down_to_the_least() -> None:
    r = torch.tensor([0.0, -0.1, -1.0, -50.0], dtype=torch.float64)
    found = raw_weights(r, CellWeightsConfig(gamma=2.0, tolerance=0.1, min=0.1)).tolist()
    assert found == pytest.approx([1.0, 1.0, math.exp(-1.8), 0.1])


def test_trust_is_relative_to_that_in_the_class() -> None:
    raw = torch.tensor([[0.2, 0.6, 0.4, 0.9], [0.3, 0.4, 0.5, 0.6]])
    labels = torch.tensor([[0, 1, 1, 255], [0, 1, 255, 255]])
    judged = torch.tensor([[True, True, True, False], [False, False, False, False]])
    found = relative_weights(raw, labels, judged, torch.tensor([0.4, 0.2]))
    expected = torch.tensor([[0.5, 2.0, 2.0, 1.5], [1.0, 1.0, 1.0, 1.0]])  # 0.6 / 0.2 is bounded by 2
    torch.testing.assert_close(found, expected)


def test_sums_by_class_are_the_loop_over_cells() -> None:
    weights = torch.tensor([[0.5, 0.2, 0.9, 1.0]])
    labels = torch.tensor([[1, 0, 1, 255]])
    assert by_class(weights, labels, 3)[0].tolist() == [
        pytest.approx([0.2, 1]),
        pytest.approx([1.4, 2]),
        [0, 0],
    ]


def test_moving_weights_are_the_loop_over_batches() -> None:
    torch.manual_seed(2)
    moving = MovingWeights(2, 2, 0.8)
    assert all(math.isnan(x) for row in moving.table() for x in row)
    assert moving.class_means().tolist() == [1.0, 1.0]
    expected = [[[0.0, 0.0] for _ in range(2)] for _ in range(2)]
    for step in range(5):
        sums = torch.rand(2, 2, 2) + 1
        if step in (1, 3):
            sums[1, 0] = 0  # not in this batch
        moving.fold(sums)
        for m in range(2):
            for k in range(2):
                if sums[m, k, 1] > 0:
                    for c in range(2):
                        expected[m][k][c] = 0.8 * expected[m][k][c] + 0.2 * float(sums[m, k, c])
    for k in range(2):
        total, n = (expected[0][k][c] + expected[1][k][c] for c in range(2))
        assert float(moving.class_means()[k]) == pytest.approx(total / n)
    for m in range(2):
        assert moving.table()[m] == pytest.approx([total / n for total, n in expected[m]])

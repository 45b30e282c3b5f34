"""Judges from the other domains, reliability of cells and their moving weights, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from ppar_dist.config.schema import CellWeightsConfig
from ppar_dist.ppar.cell_weights import MovingWeights, fill_in, leave_one_out, raw_weights, reliability
from ppar_dist.ppar.cells import unit

M, K, D = 3, 4, 5
SEEN = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 1]], dtype=torch.bool)  # class 1: one domain alone


def bank() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = unit(torch.randn(K, D, dtype=torch.float64, generator=generator))
    centroids = unit(torch.randn(M, K, D, dtype=torch.float64, generator=generator))
    return text, centroids * SEEN.unsqueeze(-1)


def test_judges_are_the_loop_over_the_other_domains() -> None:
    text, centroids = bank()
    judges = leave_one_out(text, centroids, SEEN, 0.3)
    for m in range(M):
        for k in range(K):
            others = [centroids[n, k] for n in range(M) if n != m and SEEN[n, k]]
            assert bool(judges.known[m, k]) == bool(others)
            mean = unit(sum(others) / len(others)) if others else torch.zeros(D, dtype=torch.float64)
            torch.testing.assert_close(judges.prototypes[m, k], unit(0.7 * text[k] + 0.3 * mean))


def test_a_domain_does_not_judge_itself() -> None:
    text, centroids = bank()
    changed = centroids.clone()
    changed[1] = unit(-changed[1] + 0.5)
    before, after = (leave_one_out(text, each, SEEN, 0.5).prototypes for each in (centroids, changed))
    torch.testing.assert_close(before[1], after[1])
    assert not torch.allclose(before[0], after[0])


def test_reliability_is_the_loop_over_cells() -> None:
    text, centroids = bank()
    judges = leave_one_out(text, centroids, SEEN, 0.5)
    torch.manual_seed(1)
    dense = torch.randn(2, D, 6, dtype=torch.float64)
    dense[0, :, 3] = 0  # a feature without a direction
    labels = torch.tensor([[0, 1, 2, 3, 255, 0], [0, 1, 2, 3, 255, 3]])
    domains = torch.tensor([0, 2])
    r, judged = reliability(dense, labels, domains, judges, 0.1)
    for i in range(2):
        known = [k for k in range(K) if judges.known[domains[i], k]]
        for j, y in enumerate(labels[i].tolist()):
            assert bool(judged[i, j]) == (y in known)
            expected = 0.0
            if y in known:
                f = unit(dense[i, :, j])
                logits = {k: float(f @ judges.prototypes[domains[i], k]) / 0.1 for k in known}
                total = math.log(sum(math.exp(x) for x in logits.values()))
                expected = (logits[y] - total) - max(x - total for x in logits.values())
            assert float(r[i, j]) == pytest.approx(expected, abs=1e-9)
    assert (r <= 0).all()


def test_raw_weights_fall_with_distrust_down_to_the_least() -> None:
    r = torch.tensor([0.0, -0.1, -1.0, -50.0], dtype=torch.float64)
    found = raw_weights(r, CellWeightsConfig(gamma=2.0, min=0.1)).tolist()
    assert found == pytest.approx([1.0, math.exp(-0.2), math.exp(-2.0), 0.1])


def test_cells_that_nobody_can_judge_take_the_mean_of_their_image() -> None:
    raw = torch.tensor([[0.2, 0.6, 1.0], [0.3, 0.4, 0.5]])
    judged = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(fill_in(raw, judged), torch.tensor([[0.2, 0.6, 0.4], [1.0, 1.0, 1.0]]))


def test_moving_weights_are_the_loop_over_batches() -> None:
    torch.manual_seed(2)
    moving = MovingWeights(2, 2, 0.8)
    assert all(math.isnan(x) for row in moving.table() for x in row)
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
    for m in range(2):
        assert moving.table()[m] == pytest.approx([total / n for total, n in expected[m]])

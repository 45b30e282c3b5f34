"""Stages, alignment losses and admission against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ppar_dist.config.method_section import AlignmentConfig
from ppar_dist.models.losses import cross_entropy, masked_mean
from ppar_dist.ppar.alignment import (
    DifficultyHistogram,
    Stage,
    admission_quantile,
    admitted_cells,
    difficulty,
    difficulty_histogram,
    histogram_quantile,
    pooled_alignment,
    stage_at,
    stage_weights,
)
from ppar_dist.ppar.cells import unit

TAU = 0.1


def softmax_share(cosines: list[float], true: int) -> float:
    exps = [math.exp(c / TAU) for c in cosines]
    return exps[true] / sum(exps)


@pytest.mark.parametrize(
    ("progress", "stage"), [(0.0, 0), (0.0999, 0), (0.1, 1), (0.3, 2), (0.4999, 2), (0.5, 3), (1.0, 3)]
)
def test_stage_follows_from_progress(progress: float, stage: int) -> None:
    assert stage_at(progress, (0.1, 0.3, 0.5)) is Stage(stage)


def test_stages_can_be_skipped() -> None:
    assert stage_at(0.0, (0.0, 0.0, 0.0)) is Stage.PIXEL
    assert stage_at(0.999, (0.0, 1.0, 1.0)) is Stage.TEXT


def test_weights_of_the_losses_per_stage() -> None:
    config = AlignmentConfig(text_weight=1, visual_weight=2, pixel_weight=3)
    assert [stage_weights(stage, config) for stage in Stage] == [(0, 0, 0), (1, 0, 0), (1, 2, 0), (1, 2, 3)]
    alone = config.model_copy(update={"keep_earlier": False})
    assert [stage_weights(stage, alone) for stage in Stage] == [(0, 0, 0), (1, 0, 0), (0, 2, 0), (0, 0, 3)]
    off = config.model_copy(update={"enabled": False})
    assert all(stage_weights(stage, off) == (0, 0, 0) for stage in Stage)


def test_admission_grows_linearly_to_one() -> None:
    assert [admission_quantile(p, 0.5, 0.2) for p in (0.5, 0.75, 1.0)] == pytest.approx([0.2, 0.6, 1.0])
    assert admission_quantile(1.0, 1.0, 0.2) == 1.0


def random_pooled() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    pooled = unit(torch.randn(4, 3, 5, dtype=torch.float64))
    present = torch.tensor([[1, 1, 1], [0, 1, 0], [0, 0, 0], [1, 0, 1]], dtype=torch.bool)
    pooled = pooled * present.unsqueeze(-1)
    return pooled, present, unit(torch.randn(3, 5, dtype=torch.float64))


def test_pooled_alignment_is_the_loop_over_classes() -> None:
    pooled, present, prototypes = random_pooled()
    loss, valid = pooled_alignment(pooled, present, prototypes, TAU)
    for i in range(4):
        terms = []
        for k in range(3):
            if present[i, k]:
                cosines = [float((pooled[i, k] * prototypes[j]).sum()) for j in range(3)]
                terms.append(-math.log(softmax_share(cosines, k)))
        assert float(loss[i]) == pytest.approx(sum(terms) / len(terms) if terms else 0.0)
        assert bool(valid[i]) == bool(terms)


def test_pooled_alignment_gradient() -> None:
    pooled, present, prototypes = random_pooled()
    pooled.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: pooled_alignment(x, present, prototypes, TAU)[0], pooled)
    pooled_alignment(pooled, present, prototypes, TAU)[0].sum().backward()
    assert torch.equal(pooled.grad[2], torch.zeros_like(pooled[2]))  # no class: no gradient


def random_cells() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    cosines = torch.rand(3, 4, 6, dtype=torch.float64) * 2 - 1
    cells = torch.randint(0, 4, (3, 6))
    cells[0, :2] = 255
    cells[1] = 255
    return cosines, cells


def test_pixel_loss_is_the_loop_over_admitted_cells() -> None:
    cosines, cells = random_cells()
    surprise = cross_entropy(cosines / TAU, cells)
    hard = difficulty(surprise)
    admitted = admitted_cells(hard, cells != 255, 0.8)
    loss = masked_mean(surprise, admitted)
    for i in range(3):
        kept = []
        for n in range(6):
            k = int(cells[i, n])
            if k == 255:
                assert not admitted[i, n]
                continue
            p = softmax_share(cosines[i, :, n].tolist(), k)
            assert float(hard[i, n]) == pytest.approx(1 - p, abs=1e-12)
            assert bool(admitted[i, n]) == (1 - p <= 0.8)
            if 1 - p <= 0.8:
                kept.append(-math.log(p))
        assert float(loss[i]) == pytest.approx(sum(kept) / len(kept) if kept else 0.0)
    assert 0 < admitted.sum() < (cells != 255).sum()


def test_pixel_loss_gradient() -> None:
    cosines, cells = random_cells()
    admitted = admitted_cells(difficulty(cross_entropy(cosines / TAU, cells)), cells != 255, 0.8)
    cosines.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: masked_mean(cross_entropy(x / TAU, cells), admitted), cosines)


def test_an_empty_threshold_admits_nothing_and_one_admits_all() -> None:
    hard, mask = torch.tensor([[0.0, 0.5, 1.0]]), torch.tensor([[True, True, True]])
    assert not admitted_cells(hard, mask, math.nan).any()
    assert admitted_cells(hard, mask, 1.0).all()


def test_difficulty_histogram_is_the_loop() -> None:
    torch.manual_seed(3)
    values, mask = torch.rand(2, 50), torch.rand(2, 50) > 0.3
    values[0, :3] = torch.tensor([0.0, 1.0, 0.5])
    mask[0, :3] = True
    expected = [0] * 8
    for value, valid in zip(values.flatten().tolist(), mask.flatten().tolist(), strict=True):
        if valid:
            expected[min(7, int(value * 8))] += 1
    assert difficulty_histogram(values, mask, 8).tolist() == expected
    assert difficulty_histogram(values, mask & False, 8).sum() == 0


def naive_quantile(counts: list[float], edges: list[float], q: float) -> float:
    """Where the piecewise linear distribution function reaches q, by bisection."""
    total = sum(counts)

    def below(x: float) -> float:
        shares = (
            count * min(1.0, max(0.0, (x - low) / (high - low)))
            for count, low, high in zip(counts, edges, edges[1:], strict=False)
        )
        return sum(shares) / total

    low, high = edges[0], edges[-1]
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if below(middle) >= q else (middle, high)
    return high


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=9).filter(any),
    st.floats(0.001, 0.999),
)
def test_histogram_quantile_inverts_the_distribution(counts: list[int], q: float) -> None:
    edges = [number**1.5 / 3 for number in range(len(counts) + 1)]  # uneven bins
    found = histogram_quantile(counts, edges, q)
    assert found == pytest.approx(naive_quantile(counts, edges, q), abs=1e-6)


def test_moving_histogram_is_the_loop_and_skips_empty_batches() -> None:
    moving = DifficultyHistogram(4, momentum=0.5)
    assert math.isnan(moving.threshold(0.3))
    assert math.isnan(moving.threshold(1.0))
    moving.fold([4, 0, 0, 0])
    moving.fold([0, 0, 0, 0])
    moving.fold([0, 6, 0, 0])
    assert moving.counts == [1.0, 3.0, 0.0, 0.0]
    assert moving.threshold(0.25) == pytest.approx(0.25)
    assert moving.threshold(0.625) == pytest.approx(0.375)
    assert moving.threshold(1.0) == 1.0

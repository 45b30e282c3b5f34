"""The confusion matrix against a loop over pixels."""

from __future__ import annotations

import math

import pytest
import torch

from ppar_dist.evaluation.confusion import ConfusionMatrix, mean_iou


def naive_iou(prediction: torch.Tensor, label: torch.Tensor, classes: int) -> list[float]:
    scores = []
    for k in range(classes):
        both = either = 0
        for p, y in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
            if y == 255:
                continue
            both += p == k and y == k
            either += p == k or y == k
        scores.append(both / either if either else math.nan)
    return scores


def random_maps(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    label = torch.randint(0, 3, (2, 9, 7), dtype=torch.uint8)  # class 3 is predicted only, class 4 is absent
    label[0, :4] = 255
    return torch.randint(0, 4, (2, 9, 7)), label


def test_iou_is_the_loop_over_pixels() -> None:
    prediction, label = random_maps(0)
    matrix = ConfusionMatrix(5)
    matrix.update(prediction, label)
    expected = naive_iou(prediction, label, 5)
    assert matrix.iou().tolist() == pytest.approx(expected, nan_ok=True)
    assert matrix.iou()[3] == 0
    assert matrix.iou()[4].isnan()
    assert matrix.miou() == pytest.approx(sum(expected[:4]) / 4)
    valid = label != 255
    assert matrix.accuracy() == pytest.approx(float((prediction[valid] == label[valid]).double().mean()))


def test_merging_counts_is_one_pass_over_all_images() -> None:
    one, two, whole = ConfusionMatrix(4), ConfusionMatrix(4), ConfusionMatrix(4)
    for matrix, seed in ((one, 1), (two, 2), (whole, 1), (whole, 2)):
        matrix.update(*random_maps(seed))
    one.merge(two)
    assert torch.equal(one.counts, whole.counts)
    assert mean_iou(one.counts) == whole.miou()


def test_nothing_seen_is_nan() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(torch.zeros(3, 3, dtype=torch.int64), torch.full((3, 3), 255))
    assert math.isnan(matrix.miou())
    assert math.isnan(matrix.accuracy())


def test_wrong_input_is_refused() -> None:
    matrix = ConfusionMatrix(2)
    ok = torch.zeros(2, 2, dtype=torch.int64)
    with pytest.raises(
        ValueError, match=r"label ids are in 0\.\.1 or are 255, got 0\.\.7; check the class set"
    ):
        matrix.update(ok, torch.tensor([[0, 1], [7, 0]]))
    with pytest.raises(ValueError, match=r"prediction ids are in 0\.\.1"):
        matrix.update(ok + 2, ok)
    with pytest.raises(ValueError, match=r"one shape, got \(2, 2\) and \(3, 2\)"):
        matrix.update(ok, torch.zeros(3, 2))
    with pytest.raises(ValueError, match="got 2 and 3 classes"):
        matrix.merge(ConfusionMatrix(3))

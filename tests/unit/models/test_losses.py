"""Losses against loops in float64, their gradients, and images with nothing valid."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppar_dist.models.losses import cross_entropy, masked_mean, segmentation_loss


def naive_upsample(plane: Tensor, height: int, width: int) -> list[list[float]]:
    """Bilinear, align_corners=False: pixel centres at half units, edges repeated."""
    h, w = plane.shape

    def source(i: int, big: int, small: int) -> tuple[int, int, float]:
        x = max(0.0, (i + 0.5) * small / big - 0.5)
        low = min(int(x), small - 1)
        return low, min(low + 1, small - 1), x - low

    rows = []
    for i in range(height):
        y0, y1, fy = source(i, height, h)
        row = []
        for j in range(width):
            x0, x1, fx = source(j, width, w)
            top = float(plane[y0, x0]) * (1 - fx) + float(plane[y0, x1]) * fx
            bottom = float(plane[y1, x0]) * (1 - fx) + float(plane[y1, x1]) * fx
            row.append(top * (1 - fy) + bottom * fy)
        rows.append(row)
    return rows


def naive_segmentation(logits: Tensor, labels: Tensor, likelihood: Tensor) -> list[float]:
    losses = []
    for image, label, table in zip(logits, labels, likelihood, strict=True):
        planes = [naive_upsample(plane, *label.shape) for plane in image]
        total, count = 0.0, 0
        for i in range(label.shape[0]):
            for j in range(label.shape[1]):
                k = int(label[i, j])
                if k == 255:
                    continue
                exps = [math.exp(plane[i][j]) for plane in planes]
                probable = sum(float(a) * x for a, x in zip(table[k], exps, strict=True))
                total -= math.log(probable / sum(exps))
                count += 1
        losses.append(total / count if count else 0.0)
    return losses


def random_case() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(4, 3, 2, 3, dtype=torch.float64)
    labels = torch.randint(0, 3, (4, 7, 8), dtype=torch.uint8)
    labels[0, :3] = 255
    labels[1] = 255  # nothing valid
    labels[2] = 1  # one class only
    return logits, labels


OWN = torch.eye(3, dtype=torch.float64).repeat(4, 1, 1)  # every label is its class
OTHER = OWN.clone()  # images 0 and 3 have labels that may stand for other classes
OTHER[0, 1] = torch.tensor([0.0, 1.0, 0.7])
OTHER[3] = torch.tensor([[0.3, 1.0, 0.0], [1.0, 0.2, 0.1], [0.0, 0.0, 1.0]])


@pytest.mark.parametrize("likelihood", [None, OWN, OTHER])
def test_segmentation_loss_is_the_loop_over_pixels(likelihood: Tensor | None) -> None:
    logits, labels = random_case()
    table = OWN if likelihood is None else likelihood
    expected = torch.tensor(naive_segmentation(logits, labels, table), dtype=torch.float64)
    torch.testing.assert_close(segmentation_loss(logits, labels, likelihood), expected)
    likelihood = None if likelihood is None else likelihood.float()
    found = segmentation_loss(logits.float(), labels.long(), likelihood)
    torch.testing.assert_close(found, expected.float())


@pytest.mark.parametrize("likelihood", [None, OTHER])
def test_segmentation_loss_gradient(likelihood: Tensor | None) -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, labels, likelihood), logits)


def test_a_label_that_may_stand_for_any_class_teaches_nothing() -> None:
    logits = torch.randn(1, 3, 5, dtype=torch.float64, requires_grad=True)
    cross_entropy(logits, torch.tensor([[0, 1, 2, 2, 1]]), torch.ones(1, 3, 3).double()).sum().backward()
    assert logits.grad.abs().max() < 1e-15


def test_an_exchanged_label_teaches_the_class_it_stands_for() -> None:
    logits = torch.randn(1, 3, 5, dtype=torch.float64)
    labels, exchanged = torch.tensor([[0, 1, 2, 0, 255]]), torch.tensor([[1, 0, 2, 1, 255]])
    table = OWN[:1, [1, 0, 2]]
    torch.testing.assert_close(cross_entropy(logits, labels, table), cross_entropy(logits, exchanged))


def test_unlikely_classes_leave_numbers() -> None:
    """Probabilities of 0 in any precision, under labels that may be nothing else."""
    logits = torch.tensor([[[0.0, 0.0], [200.0, -200.0], [0.0, 0.0]]], requires_grad=True)
    loss = cross_entropy(logits, torch.tensor([[0, 1]]), OTHER[:1].float())
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad.isfinite().all()


def test_an_image_without_labels_has_no_loss_and_no_gradient() -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    loss = segmentation_loss(logits, labels)
    loss.sum().backward()
    assert loss[1] == 0
    assert torch.equal(logits.grad[1], torch.zeros_like(logits[1]))
    assert logits.grad.isfinite().all()


def test_bf16_autocast_does_not_touch_the_loss() -> None:
    logits, labels = random_case()
    logits = logits.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = segmentation_loss(logits, labels)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, segmentation_loss(logits, labels))


def test_masked_mean_takes_each_sample_over_its_own_elements() -> None:
    values = torch.tensor([[1.0, 2.0, 6.0], [5.0, 7.0, 9.0], [math.inf, 4.0, math.nan]])
    mask = torch.tensor([[True, False, True], [False] * 3, [False, True, False]])
    assert masked_mean(values, mask).tolist() == [3.5, 0.0, 4.0]

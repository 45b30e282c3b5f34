"""Losses against loops in float64, their gradients, and images with nothing valid."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppar_dist.models.losses import masked_mean, segmentation_loss


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


def naive_segmentation(logits: Tensor, labels: Tensor) -> list[float]:
    losses = []
    for image, label in zip(logits, labels, strict=True):
        planes = [naive_upsample(plane, *label.shape) for plane in image]
        total, count = 0.0, 0
        for i in range(label.shape[0]):
            for j in range(label.shape[1]):
                k = int(label[i, j])
                if k == 255:
                    continue
                exps = [math.exp(plane[i][j]) for plane in planes]
                total -= math.log(exps[k] / sum(exps))
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


def test_segmentation_loss_is_the_loop_over_pixels() -> None:
    logits, labels = random_case()
    expected = torch.tensor(naive_segmentation(logits, labels), dtype=torch.float64)
    torch.testing.assert_close(segmentation_loss(logits, labels), expected)
    torch.testing.assert_close(segmentation_loss(logits.float(), labels.long()), expected.float())


def test_segmentation_loss_gradient() -> None:
    logits, labels = random_case()
    assert torch.autograd.gradcheck(lambda x: segmentation_loss(x, labels), logits.requires_grad_())


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

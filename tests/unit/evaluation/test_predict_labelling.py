"""Class ids of whole images: tiles of the upsampling, and windows of a panorama, change nothing."""

from __future__ import annotations

import random
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppar_dist.evaluation import labelling
from ppar_dist.evaluation.labelling import labels_of, logits_of, predict_labels


def interpolated(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Class ids (height, width) by the plain way: K planes of the wanted size."""
    planes = functional.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)
    return planes[0].argmax(0)


@pytest.mark.parametrize("tile", [1 << 12, 1 << 16, 1 << 22])
@pytest.mark.parametrize("rounded", [False, True], ids=["", "ties"])
def test_tiles_give_the_labels_of_the_whole(
    monkeypatch: pytest.MonkeyPatch, tile: int, rounded: bool
) -> None:
    monkeypatch.setattr(labelling, "_TILE", tile)
    torch.manual_seed(0)
    draw = random.Random(tile)
    for _ in range(40):
        cells = draw.randint(1, 90), draw.randint(1, 90)
        # Below 100 rows a tile of this test would be tiny, and torch rounds otherwise where an output is.
        size = draw.randint(1 if tile == 1 << 22 else 100, 500), draw.randint(1, 500)
        logits = torch.randn(draw.choice([2, 6, 19]), *cells)
        logits = logits.round() if rounded else logits
        labels = labels_of(logits, size)
        assert labels.dtype == torch.uint8
        assert torch.equal(labels.long(), interpolated(logits, size)), (logits.shape, size)


def test_logits_stored_channels_last_differ_by_rounding_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 6, 60, 90).contiguous(memory_format=torch.channels_last)[0]
    labels = labels_of(logits, (1200, 1800))
    assert labelling._TILE < 6 * 1200 * 1800
    assert (labels != interpolated(logits, (1200, 1800))).sum() <= 20


class _Output(NamedTuple):
    logits: Tensor


class _Local(nn.Module):
    """Logits of stride 4 that see an image's neighbourhood of 36 pixels; keeps the sizes of its inputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.mix = nn.Conv2d(3, 5, 9, padding=4)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: Tensor, dense: bool = True) -> _Output:
        self.seen.append(tuple(images.shape))
        cells = functional.avg_pool2d(images.float(), 4, ceil_mode=True, count_include_pad=False)
        return _Output(self.mix(cells))


@pytest.mark.parametrize("long", [256, 257, 258, 449, 511, 512, 513, 1031, 6400])
@pytest.mark.parametrize("upright", [False, True])
def test_windows_of_a_panorama_join_without_a_seam(long: int, upright: bool) -> None:
    segmentor = _Local()
    shape = (2, 3, long, 50) if upright else (2, 3, 50, long)
    images = torch.randint(0, 256, shape, dtype=torch.uint8)
    with torch.no_grad():
        whole = segmentor(images).logits
    segmentor.seen.clear()
    joined = logits_of(segmentor, images)
    assert joined.shape == whole.shape
    assert torch.allclose(joined, whole, atol=1e-3)  # logits are in the hundreds
    assert all(max(seen) <= 4 * 64 for seen in segmentor.seen)
    assert len(segmentor.seen) == max(1, -(-(long - 64) // 192))


def test_a_picture_of_common_shape_is_seen_at_once() -> None:
    segmentor = _Local()
    labels = predict_labels(segmentor, torch.zeros(3, 256, 1024, dtype=torch.uint8), (10, 40))
    assert segmentor.seen == [(1, 3, 256, 1024)]
    assert labels.shape == (10, 40)

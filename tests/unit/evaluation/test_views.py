"""Windows, mirror images and scales against plain loops over whole maps."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from ppar_dist.evaluation import labelling
from ppar_dist.evaluation.labelling import predict_labels
from ppar_dist.evaluation.protocol import Protocol, Slide
from ppar_dist.evaluation.views import predict_batch, slid, starts

CLASSES = 5


class Looks(nn.Module):
    """Logits of 4×4 cells that depend on the pixels around a cell and on the extent that is seen."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = torch.randn(CLASSES, 3, 7, 7, generator=generator)

    def forward(self, images: Tensor, dense: bool = True) -> SimpleNamespace:
        found = functional.conv2d(images.float() / 255, self.weight, stride=4, padding=3)
        return SimpleNamespace(logits=found + found.mean((2, 3), keepdim=True))


def picture(height: int, width: int, seed: int = 0, images: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (images, 3, height, width), dtype=torch.uint8, generator=generator)


def upsampled(logits: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(logits, size=size, mode="bilinear", align_corners=False)


def naive_slide(model: nn.Module, image: Tensor, crop: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """Each pixel's mean over all windows that hold it, window by window and pixel by pixel."""
    height, width = image.shape[2:]
    windows = []
    for down in range(max(0, -(-(height - crop[0]) // stride[0])) + 1):
        for across in range(max(0, -(-(width - crop[1]) // stride[1])) + 1):
            bottom, right = (
                min(down * stride[0] + crop[0], height),
                min(across * stride[1] + crop[1], width),
            )
            top, left = max(bottom - crop[0], 0), max(right - crop[1], 0)
            seen = image[:, :, top:bottom, left:right]
            logits = upsampled(model(seen).logits, (bottom - top, right - left))[0].numpy()
            windows.append((top, bottom, left, right, logits))
    result = np.zeros((CLASSES, height, width))
    for y in range(height):
        for x in range(width):
            here = [
                logits[:, y - top, x - left]
                for top, bottom, left, right, logits in windows
                if top <= y < bottom and left <= x < right
            ]
            result[:, y, x] = np.mean(here, 0, dtype=np.float64)
    return torch.from_numpy(result)


@pytest.mark.parametrize(
    ("size", "crop", "stride"),
    [
        ((40, 61), (24, 32), (16, 20)),
        ((24, 32), (24, 32), (24, 32)),
        ((20, 64), (24, 32), (9, 32)),
        ((33, 32), (32, 32), (8, 32)),
    ],
)
def test_windows_average_as_a_loop_over_pixels(
    size: tuple[int, int], crop: tuple[int, int], stride: tuple[int, int]
) -> None:
    model, image = Looks(), picture(*size)
    found = slid(model, image, Slide(crop, stride))
    assert torch.allclose(found[0].double(), naive_slide(model, image, crop, stride), atol=1e-5)


@pytest.mark.parametrize(
    ("extent", "expected"), [(512, [0]), (300, [0]), (1024, [0, 341, 512]), (513, [0, 1])]
)
def test_windows_begin_as_mmsegmentation_places_them(extent: int, expected: list[int]) -> None:
    assert starts(extent, 512, 341) == expected


def test_one_window_as_large_as_the_image_is_the_whole_image() -> None:
    model, image = Looks(), picture(24, 36)
    whole = predict_batch(model, [image], (48, 72), Protocol(24))
    slide = predict_batch(model, [image], (48, 72), Protocol(24, slide=Slide((24, 36), (8, 8))))
    assert torch.equal(whole[0], predict_labels(model, image[0], (48, 72)))
    # Logits go through the size that the model sees, as windows do.
    expected = upsampled(upsampled(model(image).logits, (24, 36)), (48, 72)).argmax(1)
    assert float((slide == expected).double().mean()) > 0.9999


@pytest.mark.parametrize("slide", [None, Slide((24, 32), (12, 20))])
@pytest.mark.parametrize("tile", [None, 1])
def test_mirror_images_and_scales_average_probabilities(
    slide: Slide | None, tile: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every view on a whole map of its own, in double precision; also where labels are made in tiles."""
    if tile is not None:
        monkeypatch.setattr(labelling, "_TILE", tile)
    model, size = Looks(), (50, 75)
    views = [picture(32, 48, 1), picture(40, 60, 2), picture(48, 72, 3)]
    total = torch.zeros(CLASSES, *size, dtype=torch.float64)
    for view in views:
        for is_mirrored in (False, True):
            image = view.flip(3) if is_mirrored else view
            whole = model(image).logits.double()  # from cells to the label's size at once
            logits = whole if slide is None else naive_slide(model, image, *slide)[None]
            probabilities = upsampled(logits, size).softmax(1)[0]
            total += probabilities.flip(2) if is_mirrored else probabilities
    protocol = Protocol(32, slide=slide, flip=True, scales=(1.0, 1.25, 1.5))
    found = predict_batch(model, views, size, protocol)[0]
    best = total.topk(2, 0).values
    clear = best[0] - best[1] > 1e-5
    assert clear.double().mean() > 0.99
    assert torch.equal(found[clear].long(), total.argmax(0)[clear])


def test_each_image_of_a_batch_gets_its_own_labels() -> None:
    model, images = Looks(), picture(32, 48, 5, images=3)
    protocol = Protocol(32, slide=Slide((24, 32), (8, 16)), flip=True)
    together = predict_batch(model, [images], (64, 96), protocol)
    for number in range(3):
        alone = predict_batch(model, [images[number : number + 1]], (64, 96), protocol)
        assert float((together[number] == alone[0]).double().mean()) > 0.9999

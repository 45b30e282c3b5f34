"""Colours: one matrix for all affine steps, the same pixels in any batch, and no look at the device."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from ppar_dist.data.colours import (
    Colours,
    all_at_once,
    brightness,
    composed,
    contrast,
    hue,
    one_by_one,
    random_kernel,
    recoloured,
    saturation,
)

LUMA = torch.tensor([0.299, 0.587, 0.114])
STRONG = Colours(((1.4, -0.2, 0.1, 3.0), (0.0, 0.9, 0.3, -7.0), (0.2, 0.2, 0.6, 0.5)), 0.7, 1.2)
FILTERED = STRONG._replace(kernel=random_kernel(np.random.default_rng(1)))


Way = Callable[[torch.Tensor, Sequence[Colours]], torch.Tensor]
each_way = pytest.mark.parametrize("way", [one_by_one, all_at_once])


def crops(low: int = 0, high: int = 256, size: tuple[int, int] = (37, 53)) -> torch.Tensor:
    """uint8 (6, 3, H, W) random pixels."""
    return torch.randint(
        low, high, (6, 3, *size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )


def grey(image: torch.Tensor) -> torch.Tensor:
    return torch.einsum("chw,c->hw", image.float(), LUMA)


@each_way
def test_nothing_drawn_leaves_every_pixel(way: Way) -> None:
    images = crops()
    changed = way(images, [Colours()] * 6)
    assert changed.dtype == torch.float32
    assert torch.equal(changed, images.float())


@each_way
def test_a_sample_has_the_same_pixels_in_any_batch(way: Way) -> None:
    images = crops().contiguous(memory_format=torch.channels_last)
    before = images.clone()
    drawn = [
        STRONG,
        Colours(),
        Colours(gamma=1.7),
        Colours(sigma=0.4),
        FILTERED,
        Colours(kernel=FILTERED.kernel),
    ]
    together = way(images, drawn)
    assert torch.equal(images, before)
    order = [4, 0, 5, 2, 1, 3]
    shuffled = way(images[order], [drawn[i] for i in order])
    for place, i in enumerate(order):
        alone = way(images[i : i + 1].contiguous(), drawn[i : i + 1])[0]
        assert torch.equal(together[i], alone)
        assert torch.equal(shuffled[place], alone)
    assert torch.equal(together[1], images[1].float()), "nothing is drawn for it"


def test_both_ways_give_the_same_pixels() -> None:
    images = crops()
    drawn = [STRONG, Colours(), Colours(gamma=1.7), Colours(sigma=0.4), FILTERED, STRONG]
    torch.testing.assert_close(all_at_once(images, drawn), one_by_one(images, drawn), rtol=0, atol=1e-3)


@each_way
def test_the_device_is_not_waited_for(way: Way) -> None:
    """Tensors without values stand for those of a GPU: whoever asks for one is refused."""
    images = crops().to("meta")
    assert way(images, [FILTERED] * 6).shape == images.shape


@pytest.mark.parametrize("turn", range(3))
def test_steps_are_those_of_torchvision_in_any_order(turn: int) -> None:
    """On values that nothing clamps."""
    pairs = [
        (brightness(0.8), lambda x: F.adjust_brightness(x, 0.8)),
        (contrast(1.3), lambda x: F.adjust_contrast(x, 1.3)),
        (saturation(1.2), lambda x: F.adjust_saturation(x, 1.2)),
    ]
    pairs = pairs[turn:] + pairs[:turn]
    crop = crops(110, 150)[0]
    expected = crop.float() / 255
    for _, reference in pairs:
        expected = reference(expected)
    drawn = Colours(composed([step for step, _ in pairs], crop))
    assert (recoloured(crop[None], [drawn])[0] - 255 * expected).abs().max() < 0.1


def test_contrast_keeps_the_mean_grey_that_it_meets() -> None:
    crop = crops(40, 100)[0].contiguous()
    for layout in (crop, crop.permute(1, 2, 0).contiguous().permute(2, 0, 1)):
        flat = recoloured(layout[None], [Colours(composed([brightness(1.5), contrast(0.0)], layout))])[0]
        torch.testing.assert_close(flat, torch.full_like(flat, 1.5 * float(grey(crop).mean())))


def test_hue_turns_colours_and_keeps_grey() -> None:
    crop = crops(90, 160)[0]
    for turn in (-0.1, 0.05, 0.3):
        turned = recoloured(crop[None], [Colours(composed([hue(turn)], crop))])[0]
        torch.testing.assert_close(grey(turned), grey(crop), atol=0.02, rtol=0)
        shifts = [
            (colorsys.rgb_to_hsv(*after)[0] - colorsys.rgb_to_hsv(*before)[0] + 0.5) % 1.0 - 0.5
            for before, after in zip(
                crop.flatten(1).t().tolist(), turned.flatten(1).t().tolist(), strict=True
            )
        ]
        assert float(np.median(shifts)) == pytest.approx(turn, abs=0.02)
    plain = torch.full((3, 4, 5), 77, dtype=torch.uint8)
    kept = recoloured(plain[None], [Colours(composed([hue(0.2)], plain))])[0]
    torch.testing.assert_close(kept, plain.float(), atol=0.02, rtol=0)


def test_no_saturation_is_grey() -> None:
    crop = crops()[0]
    grey_one = recoloured(crop[None], [Colours(composed([saturation(0.0)], crop))])[0]
    torch.testing.assert_close(grey_one, grey(crop).expand(3, -1, -1))


def test_gamma_comes_after_the_clamp() -> None:
    doubled = Colours(((2, 0, 0, 0), (0, 2, 0, 0), (0, 0, 2, -60)), 1.5)
    crop = crops()[0].double()
    expected = (2 * crop - torch.tensor([0, 0, 60])[:, None, None]).clamp(0, 255)
    changed = recoloured(crops()[:1], [doubled])[0]
    torch.testing.assert_close(changed.double(), 255 * (expected / 255) ** 1.5, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("sigma", [0.3, 1.5])
def test_blur_is_a_gaussian_whose_edges_repeat(sigma: float) -> None:
    image = crops(size=(9, 7))[0]
    weights = np.array([math.exp(-((x / sigma) ** 2) / 2) for x in range(-12, 13)])
    wide = np.pad(image.numpy().astype(float), ((0, 0), (12, 12), (12, 12)), mode="edge")
    kernel = np.outer(weights, weights) / weights.sum() ** 2
    windows = np.lib.stride_tricks.sliding_window_view(wide, (25, 25), axis=(1, 2))  # (3, 9, 7, 25, 25)
    expected = (windows * kernel).sum((-1, -2))
    found = recoloured(image[None], [Colours(sigma=sigma)])[0].numpy()
    assert np.abs(found - expected).max() < 0.2


@each_way
@pytest.mark.parametrize("seed", range(4))
def test_a_random_convolution_is_the_papers_mixture(way: Way, seed: int) -> None:
    """α x + (1 - α) Θ * x about the mean colour, from the same draws, by numpy alone."""
    image = crops(size=(9, 7))[0]
    rng = np.random.default_rng(seed)
    narrow, share = rng.random(2)
    size = 1 if narrow < 0.5 else 3
    theta = rng.normal(0, math.sqrt(1 / (3 * size**2)), (3, 3, size, size) if size == 3 else (3, 3))
    centre = np.array([123, 117, 104])[:, None, None]
    x = image.numpy() - centre
    reach = size // 2
    wide = np.pad(x, ((0, 0), (reach, reach), (reach, reach)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (size, size), axis=(1, 2))
    filtered = np.einsum("chwij,ocij->ohw", windows, theta.reshape(3, 3, size, size))
    expected = np.clip(centre + share * x + (1 - share) * filtered, 0, 255)
    kernel = random_kernel(np.random.default_rng(seed))
    found = way(image[None], [Colours(kernel=kernel)])[0].numpy()
    assert np.abs(found - expected).max() < 1e-3
    assert np.abs(found - image.numpy()).max() > 1

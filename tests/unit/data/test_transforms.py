"""Augmentation: seeded by position, geometry shared by image and label, global state untouched."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from benchmarks.speed.colours import pillow_colours
from ppar_dist.class_sets import IGNORE_INDEX
from ppar_dist.config.data_section import AugmentConfig, DataConfig
from ppar_dist.data.colours import Colours, recoloured
from ppar_dist.data.style import Statistics, StyleBank
from ppar_dist.data.transforms import Draws, EvalTransform, TrainTransform

STILL = {"flip": 0, "photometric": 0, "grayscale": 0, "blur": 0}
PADDING = torch.tensor([123, 117, 104])


def data_config(**changes: Any) -> DataConfig:
    values: dict[str, Any] = {
        "root": ".",
        "classes": "roads6",
        "sources": ["a"],
        "size": 90,
        "crop": (90, 120),
    }
    return DataConfig.model_validate({**values, **changes})


def coded_pair(height: int = 180, width: int = 240, cell: int = 30) -> tuple[Image.Image, np.ndarray]:
    """A label of random cells, and an image that shows the label's id as grey 40·id."""
    cells = np.random.default_rng(0).integers(0, 6, (height // cell, width // cell)).astype(np.uint8)
    label = np.kron(cells, np.ones((cell, cell), np.uint8))
    return Image.fromarray(np.repeat(label[..., None] * 40, 3, axis=2)), label


def neighbours_agree(ids: torch.Tensor) -> torch.Tensor:
    """(h, w) bool: the 3x3 neighbourhood is in the crop and has one id."""
    plane = ids.float()[None, None]
    highest = torch.nn.functional.max_pool2d(plane, 3, 1, 1)
    lowest = -torch.nn.functional.max_pool2d(-plane, 3, 1, 1)
    agree = (highest == lowest)[0, 0]
    agree[[0, -1]] = agree[:, [0, -1]] = False  # the crop may cut a sliver of the next cell
    return agree


def test_shapes_and_types() -> None:
    image, label = coded_pair()
    out, ids, _ = TrainTransform(AugmentConfig(), data_config(), 0)(image, label, 5)
    assert (out.dtype, out.shape) == (torch.uint8, (3, 90, 120))
    assert (ids.dtype, ids.shape) == (torch.uint8, (90, 120))


def test_only_seed_and_position_matter() -> None:
    image, label = coded_pair()
    first = TrainTransform(AugmentConfig(), data_config(), 3)
    expected = {p: first(image, label, p) for p in range(12)}
    torch.manual_seed(99)
    np.random.seed(99)
    again = TrainTransform(AugmentConfig(), data_config(), 3)
    for position in (11, 2, 7, 0):  # another order, another object, another global seed
        out, ids, colours = again(image, label, position)
        assert torch.equal(out, expected[position].image)
        assert torch.equal(ids, expected[position].label)
        assert colours == expected[position].colours
    assert len({crop.image.numpy().tobytes() for crop in expected.values()}) == 12
    assert len({crop.colours.gamma for crop in expected.values()} - {1.0}) > 6
    other = TrainTransform(AugmentConfig(), data_config(), 4)(image, label, 0)
    assert not torch.equal(other.image, expected[0].image)


def test_global_random_state_is_untouched() -> None:
    image, label = coded_pair()
    before = (
        torch.get_rng_state(),
        np.random.get_state(legacy=False)["state"]["key"].tolist(),
        random.getstate(),
    )
    for position in range(20):
        TrainTransform(AugmentConfig(), data_config(), 0)(image, label, position)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (np.random.get_state(legacy=False)["state"]["key"].tolist(), random.getstate())


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_image_and_label_stay_together(factor: int) -> None:
    """Away from cell borders the image still shows the id of its label, flipped, scaled or padded.

    With ``factor`` the image is smaller than its label, as the decoder may deliver it.
    """
    image, label = coded_pair(360, 480, 60)
    small = image.resize((480 // factor, 360 // factor), Image.Resampling.NEAREST)
    augment = AugmentConfig.model_validate({**STILL, "flip": 0.5, "scale": (0.5, 1.75)})
    transform = TrainTransform(augment, data_config(), 1)
    padded = flipped = 0
    for position in range(40):
        out, ids, _ = transform(small, label, position)
        shown = out.permute(1, 2, 0)  # (h, w, 3)
        outside = ids == IGNORE_INDEX
        padded += bool(outside.any())
        flipped += Draws.at(1, position).flip < 0.5
        assert (shown[outside] == PADDING).all()
        inner = neighbours_agree(ids) & ~outside  # interpolation mixes colours across cell borders
        assert inner.float().mean() > 0.2
        assert ((shown[..., 0].int() - 40 * ids.int()).abs()[inner] <= 20).all()
    assert 5 < padded < 40
    assert 10 < flipped < 30


def test_labels_are_never_mixed() -> None:
    image, label = coded_pair()
    transform = TrainTransform(AugmentConfig(), data_config(), 0)
    allowed = {*np.unique(label).tolist(), IGNORE_INDEX}
    for position in range(30):
        assert set(transform(image, label, position)[1].unique().tolist()) <= allowed


def test_scale_is_uniform_and_honoured() -> None:
    """A picture of one white column: its width in the crop gives the scale that was drawn."""
    pixels = np.zeros((180, 240, 3), np.uint8)
    pixels[:, 100:140] = 255  # within every crop: at least 160 of 240 columns are seen
    augment = AugmentConfig.model_validate({**STILL, "scale": (1.0, 1.5)})
    transform = TrainTransform(augment, data_config(size=180, crop=(180, 240)), 0)
    for position in range(20):
        out, ids, _ = transform(Image.fromarray(pixels), np.zeros((180, 240), np.uint8), position)
        scale = 1.0 + 0.5 * Draws.at(0, position).scale
        assert float((out[0, 90].float() / 255).sum()) == pytest.approx(40 * scale, abs=1.0)
        assert not (ids == IGNORE_INDEX).any()
    draws = np.array([Draws.at(0, p).scale for p in range(2000)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(draws.std() - 12**-0.5) < 0.02


def test_nothing_on_leaves_the_sample_as_it_is() -> None:
    image, label = coded_pair()
    augment = AugmentConfig.model_validate({**STILL, "scale": (1, 1)})
    out, ids, colours = TrainTransform(augment, data_config(size=180, crop=(180, 240)), 0)(image, label, 3)
    assert colours == Colours()
    assert np.array_equal(out.permute(1, 2, 0).numpy(), np.asarray(image))
    assert np.array_equal(ids.numpy(), label)


@pytest.mark.parametrize(
    "name", ["brightness", "contrast", "saturation", "hue", "gamma", "grayscale", "blur"]
)
def test_each_photometric_part_works_alone(name: str) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    off = {**STILL, "scale": (1, 1), "brightness": 0, "contrast": 0, "saturation": 0, "hue": 0, "gamma": None}
    on = {"grayscale": 1.0, "blur": 1.0, "gamma": (1.5, 2.0), "hue": 0.3}.get(name, 0.5)
    chance = {} if name in ("grayscale", "blur") else {"photometric": 1.0}
    label = np.zeros((90, 120), np.uint8)
    transform = TrainTransform(AugmentConfig.model_validate({**off, **chance, name: on}), data_config(), 0)
    out, ids, colours = transform(Image.fromarray(pixels), label, 1)
    assert np.array_equal(out.permute(1, 2, 0).numpy(), pixels)  # they are changed later
    assert (recoloured(out[None], [colours])[0] - out).abs().mean() > 1
    assert not ids.any()


def test_colours_are_close_to_those_of_pillow() -> None:
    """The reference is torchvision on Pillow images, each step rounded and clamped."""
    noise = np.random.default_rng(3).integers(90, 160, (9, 12, 3)).astype(np.uint8)
    pixels = Image.fromarray(np.kron(noise, np.ones((10, 10, 1), np.uint8)))
    augment = AugmentConfig.model_validate({"flip": 0, "blur": 0.5, "scale": (1, 1)})
    transform = TrainTransform(augment, data_config(), 0)
    differences, changes = [], []
    for position in range(30):
        crop = transform(pixels, np.zeros((90, 120), np.uint8), position)
        found = recoloured(crop.image[None], [crop.colours])[0]
        expected = F.pil_to_tensor(pillow_colours(pixels, augment, Draws.at(0, position)))
        differences.append(float((found - expected).abs().mean()))
        changes.append(float((found - crop.image).abs().mean()))
    assert np.mean(differences) < 0.15 * np.mean(changes)
    assert max(differences) < 15  # of 255


def test_decisions_do_not_shift_one_another() -> None:
    """Switching colours off leaves crop and flip where they were."""
    image, label = coded_pair()
    full = TrainTransform(AugmentConfig(), data_config(), 0)
    plain = TrainTransform(AugmentConfig.model_validate({**STILL, "flip": 0.5}), data_config(), 0)
    for position in range(10):
        assert torch.equal(full(image, label, position)[1], plain(image, label, position)[1])


def test_tensors_are_accepted() -> None:
    image, label = coded_pair()
    transform = TrainTransform(AugmentConfig(), data_config(), 0)
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for one, other in zip(
        transform(image, label, 8), transform(tensor, torch.from_numpy(label), 8), strict=True
    ):
        assert one == other if isinstance(one, Colours) else torch.equal(one, other)


def test_min_side_covers_the_largest_scale() -> None:
    augment = AugmentConfig.model_validate({"scale": (0.5, 1.75)})
    assert TrainTransform(augment, data_config(size=180), 0).min_side == 315


@pytest.mark.parametrize(("size", "expected"), [((240, 180), (90, 120)), ((180, 240), (120, 90))])
def test_eval_resizes_the_shorter_side(size: tuple[int, int], expected: tuple[int, int]) -> None:
    out = EvalTransform(90)(
        torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, *size[::-1])
    )
    assert (out.dtype, out.shape[1:]) == (torch.uint8, expected)
    assert out[:, 0, 0].tolist() == [10, 20, 30]


def _share(ids: torch.Tensor) -> float:
    """The largest share of one class in the labelled pixels of a crop."""
    counts = ids[ids != IGNORE_INDEX].unique(return_counts=True)[1]
    return float(counts.max() / counts.sum())


def test_crops_of_real_labels_hold_the_limit_of_a_class(real_data: Path) -> None:
    """A crop within the limit stays as it is; another one may only be left after ten tries."""
    files = sorted((real_data / "data/camvid/labels").glob("*.png"))[:8]
    values = {**STILL, "scale": (2, 2)}
    free, limited = (
        TrainTransform(AugmentConfig.model_validate({**values, "cat_max_ratio": ratio}), data_config(), 0)
        for ratio in (1.0, 0.6)
    )
    moved = broken = 0
    for number, file in enumerate(files):
        label = np.array(Image.open(file))
        image = Image.fromarray(np.repeat(label[..., None], 3, axis=2))
        for position in range(number * 5, number * 5 + 5):
            before, after = free(image, label, position), limited(image, label, position)
            if _share(before.label) <= 0.6:
                assert torch.equal(before.label, after.label)
                assert torch.equal(before.image, after.image)
                continue
            moved += _share(after.label) <= 0.6
            broken += _share(after.label) > 0.6
            assert torch.equal(after.label, limited(image, label, position).label)
    assert moved > 3 * broken


def test_a_limit_that_no_place_holds_leaves_a_crop() -> None:
    image, _ = coded_pair()
    for value in (3, IGNORE_INDEX):
        label = np.full((180, 240), value, np.uint8)
        augment = AugmentConfig.model_validate({**STILL, "cat_max_ratio": 0.5})
        crop = TrainTransform(augment, data_config(), 0)(image, label, 1)
        assert set(crop.label.unique().tolist()) <= {value, IGNORE_INDEX}


def test_a_random_convolution_changes_the_image_alone() -> None:
    """Seeded by position, as often as its chance, and what else is drawn stays."""
    image, label = coded_pair()
    plain = TrainTransform(AugmentConfig(), data_config(), 3)
    style = TrainTransform(AugmentConfig.model_validate({"random_convolution": 0.5}), data_config(), 3)
    drawn = 0
    for position in range(40):
        before, after = plain(image, label, position), style(image, label, position)
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.label, after.label)
        assert after.colours._replace(kernel=None) == before.colours
        assert after.colours == style(image, label, position).colours
        drawn += after.colours.kernel is not None
    assert 10 <= drawn <= 30  # 3.2 standard deviations of a binomial


def test_an_exchange_of_style_changes_colours_alone() -> None:
    """Seeded by position, as often as its chance, and what else is drawn stays.

    The statistics are those of the whole picture, wherever the crop is.
    """
    noise = np.random.default_rng(1).integers(100, 140, (180, 240, 3)).astype(np.uint8)
    noise[:, :120] -= 30
    image, label = Image.fromarray(noise), coded_pair()[1]
    night = Statistics((60.0, 80.0, 95.0), (9.0, 14.0, 21.0))
    bank = StyleBank(((Statistics((0, 0, 0), (0, 0, 0)),), (night,)))
    values: dict[str, Any] = {**STILL, "blur": 0.5, "random_convolution": 0.5}
    plain = TrainTransform(AugmentConfig.model_validate(values), data_config(), 3)
    style = TrainTransform(
        AugmentConfig.model_validate(values | {"style_exchange": 0.5}), data_config(), 3, bank
    )
    pixels = noise[::2, ::2].astype(float)  # which are looked at
    gain = np.array(night.std) / pixels.std((0, 1))
    drawn = 0
    for position in range(40):
        before, after = plain(image, label, position), style(image, label, position)
        assert torch.equal(before.image, after.image)
        assert torch.equal(before.label, after.label)
        assert after.colours._replace(matrix=None) == before.colours
        assert after.colours == style(image, label, position).colours
        if after.colours.matrix is not None:
            drawn += 1
            matrix = np.array(after.colours.matrix)
            assert matrix[:, :3] == pytest.approx(np.diag(gain), rel=1e-9)
            assert matrix[:, 3] == pytest.approx(night.mean - gain * pixels.mean((0, 1)), rel=1e-9)
    assert 10 <= drawn <= 30

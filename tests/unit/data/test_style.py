"""Exchange of style: the mean and deviation of another source's image, from a bank of training images."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ppar_dist.config.data_section import AugmentConfig
from ppar_dist.config.schema import Config
from ppar_dist.data.colours import Colours, all_at_once, composed, one_by_one
from ppar_dist.data.shards.index import DomainIndex
from ppar_dist.data.shards.writer import write_domain
from ppar_dist.data.sources import open_sources
from ppar_dist.data.style import Statistics, StyleBank, exchange, statistics
from ppar_dist.data.style_bank import style_bank
from ppar_dist.errors import DataError
from tests.ranks import encode
from tests.unit.street_shards import config, overwrite, scene

DUSK = Statistics((140.0, 110.0, 90.0), (12.0, 20.0, 9.0))
FLAT = np.full((36, 48, 3), 1, np.uint8)


def picture(height: int = 36, width: int = 48) -> torch.Tensor:
    """uint8 (3, H, W) of values 80 to 130, another range in each channel."""
    values = np.random.default_rng(0).integers(80, 110, (height, width, 3)) + np.array([0, 10, 20])
    return torch.from_numpy(values.astype(np.uint8)).permute(2, 0, 1)


def exchanging(root: Path, chance: float = 0.5, **data: Any) -> Config:
    augment = AugmentConfig(style_exchange=chance)
    return config(root, data).model_copy(update={"augment": augment})


@pytest.mark.parametrize("way", [one_by_one, all_at_once])
def test_a_picture_gets_the_statistics_of_the_other(way: Any) -> None:
    own = picture()
    step = exchange(statistics(own), DUSK)
    changed = way(own[None], [Colours(composed([step], own))])[0].flatten(1).double().numpy()
    assert changed.mean(1) == pytest.approx(DUSK.mean, abs=1e-3)
    assert changed.std(1) == pytest.approx(DUSK.std, abs=1e-3)


def test_a_channel_is_stretched_four_times_at_most() -> None:
    wild = Statistics((100.0, 100.0, 100.0), (80.0, 0.5, 20.0))
    matrix = composed([exchange(Statistics((50, 50, 50), (10.0, 10.0, 0.0)), wild)], picture())
    assert matrix is not None
    assert [row[place] for place, row in enumerate(matrix)] == [4.0, 0.25, 4.0]
    assert [row[place] * 50 + row[3] for place, row in enumerate(matrix)] == pytest.approx([100.0] * 3)


def test_statistics_are_those_of_the_pixels() -> None:
    small, large = picture(), picture(300, 260)
    for image, tolerance in ((small, 1e-9), (large, 0.5)):  # of a large one every fourth row and column
        pixels = image.numpy().reshape(3, -1).astype(float)
        assert statistics(image).mean == pytest.approx(pixels.mean(1), abs=tolerance)
        assert statistics(image).std == pytest.approx(pixels.std(1), abs=tolerance)


def test_styles_are_of_other_sources_all_alike_often() -> None:
    ones = [tuple(DUSK._replace(std=(s, i, 1.0)) for i in range(2)) for s in range(3)]
    bank, rng = StyleBank(tuple(ones)), np.random.default_rng(4)
    drawn = [bank.draw(rng, 1).std for _ in range(800)]
    counts = [drawn.count((s, i, 1.0)) for s in range(3) for i in range(2)]
    assert counts[2:4] == [0, 0]
    assert all(abs(counts[i] - 200) < 55 for i in (0, 1, 4, 5))  # 4.5 standard deviations
    alone = StyleBank((ones[2],))
    assert {alone.draw(rng, 0) for _ in range(50)} == set(ones[2])


def test_the_bank_is_of_training_images(tmp_path: Path) -> None:
    """Held-out images are black; of the others each stands in the bank once, as Pillow decodes it."""
    samples = [(f"a{number}", *scene(number), {}) for number in range(15)]
    held_out = [(f"b{number}", encode(FLAT, "JPEG"), scene(number)[1], {}) for number in range(5)]
    write_domain(tmp_path / "day", "roads6", [*samples, *held_out])
    cfg = exchanging(tmp_path, sources=["day"], holdout=0.25)
    bank = style_bank(cfg, open_sources(cfg))
    assert bank is not None
    expected = set()
    for number in range(15):
        pixels = np.asarray(Image.open(io.BytesIO(scene(number)[0]))).astype(float)
        expected.add(tuple(np.round([*pixels.mean((0, 1)), *pixels.std((0, 1))], 6)))
    assert {tuple(np.round([*each.mean, *each.std], 6)) for each in bank.sources[0]} == expected


@pytest.mark.local_data("the node holds what it has read: what changes then is not met")
def test_the_bank_follows_from_data_and_seed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A bad image is replaced in its own place alone, and that is said."""
    write_domain(tmp_path / "day", "roads6", [(f"a{number}", *scene(number), {}) for number in range(90)])
    cfg = exchanging(tmp_path, sources=["day"], holdout=0)
    indexes = open_sources(cfg)
    calls: list[int] = []
    bank = style_bank(cfg, indexes, lambda: calls.append(1))
    assert bank is not None
    assert len(calls) == len(set(bank.sources[0])) == 64
    np.random.seed(9)
    assert style_bank(cfg, open_sources(cfg)) == bank
    other = style_bank(cfg.model_copy(update={"seed": 6}), indexes)
    assert other is not None
    assert set(other.sources[0]) != set(bank.sources[0])
    assert not caplog.records
    for sample in range(3):
        overwrite(DomainIndex.open(tmp_path / "day"), sample, "image", b"no image")
    after = style_bank(cfg, open_sources(cfg))
    assert after is not None
    kept = sum(one == two for one, two in zip(bank.sources[0], after.sources[0], strict=True))
    assert 61 <= kept < 64
    assert "of the images chosen from day cannot be read, others take their place" in caplog.text
    for sample in range(3, 90):
        overwrite(DomainIndex.open(tmp_path / "day"), sample, "image", b"no image")
    with pytest.raises(DataError, match=r"chosen from domain day can be read, in 1024 tries; repair"):
        style_bank(cfg, open_sources(cfg))


def test_without_exchange_nothing_is_measured(tmp_path: Path) -> None:
    cfg = exchanging(tmp_path, chance=0.0)
    assert style_bank(cfg, []) is None

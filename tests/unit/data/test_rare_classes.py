"""Rare-class sampling: classes as often as the formula says, and crops that have them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ppar_dist.config.data_section import AugmentConfig, DataConfig, RareClassConfig
from ppar_dist.data.order import DomainShare, Order
from ppar_dist.data.rare_classes import RareClasses
from ppar_dist.data.transforms import TrainTransform
from ppar_dist.errors import DataError

COUNTS = np.array(
    [[9000, 0, 0, 500], [8000, 4000, 0, 0], [7000, 3500, 0, 0], [6000, 0, 3000, 2999], [9000, 10, 0, 0]],
    np.uint32,
)


def order(temperature: float = 0.5, seed: int = 3) -> Order:
    config = RareClassConfig(enabled=True, temperature=temperature)
    shares = [DomainShare("a", len(COUNTS), 1.0), DomainShare("b", len(COUNTS), 3.0)]
    return Order(shares, seed, 4, 4, [RareClasses(share.name, COUNTS, config) for share in shares])


def test_classes_come_as_often_as_their_rarity_says() -> None:
    drawn = 20_000
    found = [order().locate(position) for position in range(drawn)]
    frequencies = COUNTS.sum(0) / COUNTS.sum()
    expected = np.exp((1 - frequencies) / 0.5) * [1, 1, 1, 0]  # no sample has 3000 pixels of the last class
    expected /= expected.sum()
    seen = Counter(place.rare for place in found)
    for number, chance in enumerate(expected):
        deviation = abs(seen[number] - drawn * chance)
        assert deviation <= 4.5 * np.sqrt(drawn * chance * (1 - chance))
    assert all(COUNTS[place.sample, place.rare] >= 3000 for place in found)
    of_second = Counter(place.sample for place in found if place.rare == 1)
    assert set(of_second) == {1, 2}
    assert abs(of_second[1] - of_second[2]) <= 4.5 * np.sqrt(sum(of_second.values()))


def test_domains_keep_their_shares() -> None:
    plain = Order(order().shares, 3, 4, 4)
    places = [(order().locate(p).domain, plain.locate(p).domain) for p in range(300)]
    assert all(rare == usual for rare, usual in places)


@given(st.integers(0, 10**12), st.integers(0, 15), st.integers(-(2**63), 2**63 - 1))
def test_a_position_is_the_whole_state(position: int, attempt: int, seed: int) -> None:
    assert order(seed=seed).locate(position, attempt) == order(seed=seed).locate(position, attempt)


def test_a_low_temperature_does_not_overflow() -> None:
    found = order(temperature=1e-6)
    assert found.rare is not None
    assert found.rare[0].probabilities.tolist() == [0, 0, 1, 0]


def test_a_domain_without_such_samples_is_refused() -> None:
    config = RareClassConfig(enabled=True, min_pixels=10_000)
    with pytest.raises(DataError, match=r"domain a: no sample has 10000 pixels of a class; lower data.rare_"):
        RareClasses("a", COUNTS, config)


def test_the_crop_is_where_the_class_is() -> None:
    """The class fills one corner: most single places miss it, ten seldom do."""
    label = np.zeros((400, 400), np.uint8)
    label[:150, :150] = 1
    image = np.repeat(label[:, :, None] * 200, 3, axis=2)
    data = DataConfig.model_validate(
        {
            **{"root": ".", "classes": "roads6", "sources": ["a"], "size": 400, "crop": [100, 100]},
            "rare_classes": {"enabled": True},
        }
    )
    transform = TrainTransform(AugmentConfig(scale=(1.0, 1.0), flip=0.0), data, 1)

    def has_it(position: int, rare: int | None) -> bool:
        crop = transform(Image.fromarray(image), label, position, rare)
        return int((crop.label == 1).sum()) >= 1500

    usual = sum(has_it(position, None) for position in range(200))
    looked_for = sum(has_it(position, 1) for position in range(200))
    assert usual < 60
    assert looked_for > 3 * usual
    positions = [position for position in range(200) if has_it(position, None)]
    for position in positions:
        plain = transform(Image.fromarray(image), label, position)
        rare = transform(Image.fromarray(image), label, position, 1)
        assert bool((plain.label == rare.label).all()), "a crop that has the class stays where it is"


def test_a_domain_of_several_stretches_is_looked_through_whole() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 6000, (40_000, 3)).astype(np.uint32)
    found = RareClasses("a", counts, RareClassConfig(enabled=True, temperature=0.5))
    for number in range(3):
        assert found.samples[number].dtype == np.uint32
        assert (found.samples[number] == np.flatnonzero(counts[:, number] >= 3000)).all()
    shares = counts.sum(0) / counts.sum()
    expected = np.exp((1 - shares) / 0.5)
    assert np.allclose(found.probabilities, expected / expected.sum(), rtol=1e-12)

"""Made weather: what it does to a picture, and that it is the same each time."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gain.weather import WEATHERS, changed
from ppar_dist.data.reading import EvalSample


def samples() -> list[EvalSample]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, 40, 60), generator=generator, dtype=torch.uint8)
    return [
        EvalSample(image=image, label=torch.zeros(40, 60), key="", sample=i) for i, image in enumerate(images)
    ]


@pytest.mark.parametrize("name", WEATHERS)
def test_a_weather_changes_the_image_alone_and_each_time_alike(name: str) -> None:
    first, second = (list(changed(iter(samples()), WEATHERS[name])) for _ in range(2))
    for one, other, before in zip(first, second, samples(), strict=True):
        assert torch.equal(one.image, other.image)
        assert one.image.dtype == torch.uint8
        assert (one.image.float() - before.image.float()).abs().mean() > 20
        assert torch.equal(one.label, before.label)


def test_night_is_dark_fog_is_pale_and_snow_lies_below() -> None:
    plain = torch.full((3, 40, 60), 0.5)
    generator = torch.Generator().manual_seed(0)
    assert WEATHERS["night"](plain, generator).mean() < 0.2
    grey = (WEATHERS["fog"](plain, generator) - 0.8).abs()
    assert grey[:, 0].mean() < grey[:, -1].mean()  # what is high up is far
    white = WEATHERS["snow"](plain, generator)
    assert white[:, -1].mean() > white[:, 0].mean() + 0.2

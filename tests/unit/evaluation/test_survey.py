"""What the survey looks at: which images, which cells, which features."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppar_dist.config.model_section import BackboneConfig
from ppar_dist.data.reading import EvalSample
from ppar_dist.evaluation.survey import TowerFeatures, evenly, is_random, labels_of_cells
from ppar_dist.models.backbone import Backbone
from ppar_dist.models.features import Features, FeatureShape


class Averages(Backbone):
    """Levels that are the image itself, averaged: the mean of a cell is known."""

    def __init__(self, strides: tuple[int, ...], width: int = 3) -> None:
        channels = (width,) * len(strides)
        shape = FeatureShape(channels, strides, dense_stride=8, embed_dim=4, multiple=32)
        super().__init__(
            nn.Conv2d(3, 1, 1),
            shape,
            BackboneConfig(kind="timm", name="none", embed_dim=4),
            (0.5,) * 3,
            (1.0,) * 3,
        )
        self.width = width

    def run_tower(self, images: Tensor, dense: bool) -> Features:
        wide = images.repeat(1, -(-self.width // 3), 1, 1)[:, : self.width]
        return Features([F.avg_pool2d(wide, stride) for stride in self.strides], None)


@pytest.mark.parametrize(
    ("total", "wanted", "expected"),
    [(10, 2, [2, 7]), (3, 5, [0, 1, 2]), (4, 0, [0, 1, 2, 3]), (0, 3, [])],
)
def test_evenly(total: int, wanted: int, expected: list[int]) -> None:
    assert evenly(total, wanted) == expected


@pytest.mark.parametrize(
    ("strides", "stride"), [((4, 8, 16, 32), 8), ((16, 16, 32), 16), ((2, 4), 4), ((8, 8, 8), 8)]
)
def test_features_of_a_cell_are_those_of_its_pixels(strides: tuple[int, ...], stride: int) -> None:
    """A padded image of 40 by 72: cells that hold padding alone are left out."""
    colours = torch.randint(0, 256, (3, 2, 3), generator=torch.Generator().manual_seed(0))
    image = colours.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :40, :72].to(torch.uint8)
    found = TowerFeatures(Averages(strides).eval())(image)
    assert found.shape == (3 * len(set(strides)), -(-40 // stride), -(-72 // stride))
    at_grid = list(dict.fromkeys(strides)).index(min(s for s in strides if s >= stride))
    expected = image[:, :32:stride, :64:stride] / 255.0 - 0.5  # whole cells of one colour
    own = found[3 * at_grid : 3 * at_grid + 3, : 32 // stride, : 64 // stride]
    torch.testing.assert_close(own, expected)


def test_many_features_are_projected_the_same_way_and_keep_their_distances() -> None:
    image = torch.randint(0, 256, (3, 32, 64), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    wide = Averages((8,), width=600).eval()
    full = wide.run_tower(wide.prepare(image[None]), False).pyramid[0][0].flatten(1).t()  # (N, 600)
    found, again = (TowerFeatures(wide)(image) for _ in range(2))
    assert found.shape == (512, 4, 8)
    assert torch.equal(found, again)
    ratio = torch.pdist(found.flatten(1).t()) / torch.pdist(full)
    assert float(ratio.std() / ratio.mean()) < 0.15


def test_labels_of_cells_are_those_of_the_image_as_it_is_seen() -> None:
    """A label map of twice the size; a cell of two classes has none."""
    label = torch.zeros(32, 64, dtype=torch.uint8)
    label[:, 16:24], label[:, 24:48], label[:16, 48:] = 1, 2, 255
    sample = EvalSample(key="a", image=torch.zeros(3, 16, 32, dtype=torch.uint8), label=label, sample=0)
    assert labels_of_cells(sample, (2, 4), 6, 0.75).tolist() == [[0, 255, 2, 255], [0, 255, 2, 0]]


def test_weights_that_the_library_loads_are_not_random() -> None:
    tower = {"kind": "timm", "name": "resnet18", "embed_dim": 16}
    assert is_random(BackboneConfig.model_validate(tower))
    for options in ({"pretrained": True}, {"checkpoint_path": "trunk.safetensors"}):
        assert not is_random(BackboneConfig.model_validate({**tower, "options": options}))

"""Cell labels and class sums of unit features against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ppar_dist.ppar.cells import cell_features, cell_labels, grid_stride, pool, unit


def naive_labels(labels: Tensor, grid: tuple[int, int], stride: tuple[int, int], purity: float) -> list:
    (h, w), (sy, sx) = grid, stride
    maps = []
    for label in labels.tolist():
        rows = []
        for i in range(h):
            row = []
            for j in range(w):
                block = [line[j * sx : (j + 1) * sx] for line in label[i * sy : (i + 1) * sy]]
                pixels = [pixel for line in block for pixel in line if pixel != 255]
                best = max(sorted(set(pixels)), key=pixels.count, default=255)
                row.append(best if pixels.count(best) >= purity * sy * sx and pixels else 255)
            rows.append(row)
        maps.append(rows)
    return maps


def naive_unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length if length else 0.0 for x in vector]


def naive_sums(dense: Tensor, cells: Tensor, classes: int) -> Tensor:
    batch, width, h, w = dense.shape
    sums = torch.zeros(batch, classes, width, dtype=torch.float64)
    for b in range(batch):
        for i in range(h):
            for j in range(w):
                if int(cells[b, i, j]) != 255:
                    sums[b, int(cells[b, i, j])] += torch.tensor(
                        naive_unit(dense[b, :, i, j].tolist()), dtype=torch.float64
                    )
    return sums


def random_features() -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    dense = torch.randn(3, 5, 3, 2, dtype=torch.float64)
    cells = torch.randint(0, 3, (3, 3, 2))  # class 3 of 4 is absent
    cells[0, 0] = 255
    cells[1] = 255  # nothing valid
    return dense, cells


@pytest.mark.parametrize(
    ("size", "grid", "stride"),
    [
        ((192, 240), (12, 15), (16, 16)),
        ((180, 240), (12, 15), (16, 16)),  # 15 divides 180, but one stride serves both axes
        ((180, 180), (12, 12), (16, 16)),  # 15 fits too: towers halve
        ((224, 224), (16, 16), (14, 14)),  # ViT-L/14
        ((5, 9), (5, 9), (1, 1)),
        ((10, 40), (5, 5), (2, 8)),  # no stride fits both
    ],
)
def test_grid_stride(size: tuple[int, int], grid: tuple[int, int], stride: tuple[int, int]) -> None:
    assert grid_stride(size, grid) == stride


def test_a_grid_that_does_not_tile_is_refused() -> None:
    with pytest.raises(ValueError, match=r"70 cells does not tile 100 pixels .* pad the image"):
        grid_stride((100, 100), (70, 70))


@pytest.mark.parametrize("purity", [0.01, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("size", [(12, 16), (10, 14)])  # the second ends within a cell
def test_cell_labels_are_the_loop_over_pixels(purity: float, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.rand(4, *size, generator=generator).mul(1.6).int().mul(2).to(torch.uint8)  # 0 or 2
    labels[1, :5, :6] = 255
    labels[2] = 255
    labels[3, :8, :8] = 1
    cells = cell_labels(labels, (3, 4), 3, purity)
    assert cells.tolist() == naive_labels(labels, (3, 4), (4, 4), purity)
    assert torch.equal(cells, cell_labels(labels.long(), (3, 4), 3, purity))


def test_a_share_met_exactly_is_enough() -> None:
    labels = torch.tensor([[[0, 0, 0, 1], [0, 0, 255, 0]]])  # cells of 2x2: 4 of 4, then 2 of 4
    assert cell_labels(labels, (1, 2), 2, 1.0).tolist() == [[[0, 255]]]
    assert cell_labels(labels, (1, 2), 2, 0.5).tolist() == [[[0, 0]]]


def test_pooled_features_are_the_loop_over_cells() -> None:
    dense, cells = random_features()
    sums = naive_sums(dense, cells, 4)
    features = cell_features(dense, cells, 4)
    pooled, present, counts = pool(features.sums), features.present, features.counts
    for b in range(3):
        for k in range(4):
            number = int((cells[b] == k).sum())
            assert counts[b, k] == number
            assert bool(present[b, k]) == (number > 0)
            expected = naive_unit((sums[b, k] / max(1, number)).tolist())
            assert pooled[b, k].tolist() == pytest.approx(expected, abs=1e-12)


def test_sums_and_cosines_are_the_loop_over_cells() -> None:
    dense, cells = random_features()
    prototypes = unit(torch.randn(4, 5, dtype=torch.float64))
    features = cell_features(dense, cells, 4, prototypes)
    torch.testing.assert_close(features.sums, naive_sums(dense, cells, 4))
    assert features.cosines is not None
    for b in range(3):
        for n in range(6):
            own = torch.tensor(naive_unit(dense[b, :, n // 2, n % 2].tolist()), dtype=torch.float64)
            for k in range(4):
                cosine = sum(float(x) * float(y) for x, y in zip(own, prototypes[k], strict=True))
                assert float(features.cosines[b, k, n]) == pytest.approx(cosine)


def test_gradient_of_sums_and_cosines() -> None:
    dense, cells = random_features()
    prototypes = unit(torch.randn(4, 5, dtype=torch.float64))

    def products(x: Tensor) -> tuple[Tensor, Tensor]:
        features = cell_features(x, cells, 4, prototypes)
        assert features.cosines is not None
        return features.sums, features.cosines

    dense.requires_grad_()
    assert torch.autograd.gradcheck(products, dense)
    assert torch.autograd.gradcheck(lambda x: products(x)[0], dense)
    assert torch.autograd.gradcheck(lambda x: products(x)[1], dense)
    assert torch.autograd.gradcheck(lambda x: pool(cell_features(x, cells, 4).sums), dense)


def test_a_zero_vector_has_no_direction_and_no_gradient() -> None:
    dense, cells = random_features()
    dense[2, :, 1, 1] = 0
    dense.requires_grad_()
    features = cell_features(dense, cells, 4, torch.eye(4, 5, dtype=torch.float64))
    assert features.cosines is not None
    (features.sums.sum() + features.cosines.sum()).backward()
    assert torch.equal(features.cosines[2, :, 3], torch.zeros(4, dtype=torch.float64))
    assert torch.equal(dense.grad[2, :, 1, 1], torch.zeros(5, dtype=torch.float64))
    assert dense.grad.isfinite().all()
    x = torch.zeros(2, 3, requires_grad=True)
    unit(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(2, 3))


def test_bf16_features_are_summed_in_float32() -> None:
    dense, cells = random_features()
    half = dense.to(torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        labels = cell_labels(torch.zeros(1, 4, 4, dtype=torch.uint8), (2, 2), 2, 1.0)
    assert labels.eq(0).all()
    sums = cell_features(half, cells, 4).sums
    assert sums.dtype == torch.float32
    torch.testing.assert_close(sums, naive_sums(half.double(), cells, 4).float())

"""Prototypes of the image, against loops with torch's own Gaussians."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.distributions import MultivariateNormal

from ppar_dist.models.image_prototypes import _HALF, _SURE, ImagePrototypes

K, V = 3, 4
SHARE = 0.3


def fitted(seed: int = 0) -> ImagePrototypes:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(V, V, generator=generator)
    found = ImagePrototypes(K, V)
    found.means.copy_(10 + 3 * torch.randn(K, V, generator=generator))
    found.precision.copy_(torch.linalg.inv(mix @ mix.t() + torch.eye(V)))
    found.shares.copy_(torch.tensor([SHARE, SHARE, 0.0]))  # the last class has no prototype
    return found


def image(seed: int, number: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(number, K, 5, 6, generator=generator)
    return logits, 10 + 3 * torch.randn(number, V, 5, 6, generator=generator)


def by_loops(prototypes: ImagePrototypes, logits: Tensor, features: Tensor) -> Tensor:
    """The formulas of the module, a class and a cell at a time."""
    logits, features = logits.double(), features.double()
    means, covariance = prototypes.means.double(), torch.linalg.inv(prototypes.precision.double())
    expected = logits.clone()
    for b in range(len(logits)):
        cells = [
            (features[b, :, i, j], logits[b, :, i, j].softmax(0), i, j) for i in range(5) for j in range(6)
        ]
        for k in range(K):
            votes = [float(p[k]) if p[k] > _SURE else 0.0 for _, p, _, _ in cells]
            if not sum(votes):
                continue
            covered = sum(votes) / len(votes)
            own = sum((q * f for q, (f, *_) in zip(votes, cells, strict=True)), torch.zeros(V)) / sum(votes)
            alpha = float(prototypes.shares[k]) * covered / (covered + _HALF)
            moved = MultivariateNormal(means[k] + alpha * (own - means[k]), covariance)
            source = MultivariateNormal(means[k], covariance)
            for f, _, i, j in cells:
                expected[b, k, i, j] += moved.log_prob(f) - source.log_prob(f)
    return expected


def test_the_correction_is_the_difference_of_two_log_densities() -> None:
    prototypes, (logits, features) = fitted(), image(1)
    found = prototypes(logits, features)
    torch.testing.assert_close(found.double(), by_loops(prototypes, logits, features), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found[:, :2], logits[:, :2], atol=0.1)


def test_an_image_does_not_depend_on_its_neighbours_in_a_batch() -> None:
    prototypes, (logits, features) = fitted(), image(2, 3)
    together = prototypes(logits, features)
    for b in range(3):
        torch.testing.assert_close(prototypes(logits[b : b + 1], features[b : b + 1])[0], together[b])


def test_nothing_changes_before_prototypes_are_fitted_nor_where_nothing_is_sure() -> None:
    logits, features = image(3)
    assert torch.equal(ImagePrototypes(K, V)(logits, features), logits)
    unsure = torch.zeros_like(logits)
    assert torch.equal(fitted()(unsure, features), unsure)


def test_a_class_without_prototype_keeps_its_logits() -> None:
    logits, features = image(4)
    assert torch.equal(fitted()(logits, features)[:, 2], logits[:, 2])


def test_sure_cells_bring_unsure_ones_of_their_kind_to_their_class() -> None:
    """All features of the image are moved alike: the cells between the classes profit."""
    prototypes = ImagePrototypes(2, 1)
    prototypes.means.copy_(torch.tensor([[0.0], [4.0]]))
    prototypes.precision.fill_(1.0)
    prototypes.shares.fill_(0.5)
    places = torch.tensor([0.0] * 8 + [4.0] * 8 + [1.3, 2.7]) - 1.0  # by this camera, 1 lower
    logits = torch.stack([-0.5 * places**2, -0.5 * (places - 4.0) ** 2]).view(1, 2, 1, -1)
    truth = torch.tensor([0] * 8 + [1] * 8 + [0, 1])
    assert logits.argmax(1).flatten()[-1] == 0 != truth[-1]
    assert torch.equal(prototypes(logits, places.view(1, 1, 1, -1)).argmax(1).flatten(), truth)


def test_a_class_that_no_cell_is_sure_of_does_not_take_the_cells_of_another() -> None:
    prototypes = ImagePrototypes(2, 1)
    prototypes.means.copy_(torch.tensor([[0.0], [9.0]]))
    prototypes.precision.fill_(1.0)
    prototypes.shares.fill_(0.5)
    logits = torch.tensor([3.0, 0.0]).log_softmax(0).view(1, 2, 1, 1).expand(1, 2, 4, 4)  # sure of class 0
    features = torch.ones(1, 1, 4, 4)
    assert torch.equal(prototypes(logits, features)[:, 1], logits[:, 1])


def test_half_precision_is_left() -> None:
    prototypes, (logits, features) = fitted(), image(5)
    with torch.autocast("cpu", torch.bfloat16):
        found = prototypes(logits, features)
    torch.testing.assert_close(found, prototypes(logits, features))

"""Moments and the linear discriminant, against loops and torch's own Gaussians."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import MultivariateNormal

from ppar_dist.ppar.gaussian import LinearClassifier, Moments, discriminant, pooled_discriminant

K, D = 4, 5


def cells(seed: int, number: int = 200) -> tuple[torch.Tensor, torch.Tensor]:
    """Features that depend on each other, around a place per class; no label is K - 1."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, K - 1, (number,), generator=generator)
    mix, places = (torch.randn(size, D, generator=generator, dtype=torch.float64) for size in (D, K))
    noise = torch.randn(number, D, generator=generator, dtype=torch.float64)
    return noise @ mix + places[labels], labels


def pooled(moments: Moments) -> torch.Tensor:
    """The covariance within classes."""
    shares = moments.counts / moments.counts.sum()
    return (shares[:, None, None] * moments.covariances).sum(0)


def test_moments_are_the_loop_over_cells() -> None:
    features, labels = cells(0)
    found = Moments.of(features.float(), labels, K)
    for k in range(K):
        own = [f for f, label in zip(features, labels.tolist(), strict=True) if label == k]
        assert found.counts[k] == len(own)
        mean = sum(own, torch.zeros(D)) / max(1, len(own))
        covariance = sum((torch.outer(f - mean, f - mean) for f in own), torch.zeros(D, D)) / max(1, len(own))
        torch.testing.assert_close(found.means[k], mean.double(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(found.covariances[k], covariance.double(), rtol=1e-5, atol=1e-5)
    assert found.counts[K - 1] == 0


def test_moments_of_nothing_are_zero() -> None:
    found = Moments.of(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), K)
    assert not any(value.count_nonzero() for value in (found.counts, found.means, found.covariances))


@pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
def test_the_discriminant_is_bayes_rule_for_gaussians(shrinkage: float) -> None:
    features, labels = cells(1)
    moments, known = Moments.of(features, labels, K), torch.tensor([True] * (K - 1) + [False])
    covariance = pooled(moments)
    found = discriminant(moments.means, covariance, known, shrinkage).log_probabilities(features)
    shrunk = covariance.clone()
    for i in range(D):
        for j in range(D):
            if i != j:
                shrunk[i, j] *= 1 - shrinkage  # correlations are trusted less, variances are not
    densities = [MultivariateNormal(mean, shrunk).log_prob(features) for mean in moments.means[: K - 1]]
    expected = torch.stack(densities, 1).log_softmax(1)  # equal priors
    torch.testing.assert_close(found[:, : K - 1], expected)


def test_the_pooled_discriminant_is_the_loop_over_domains() -> None:
    moments = [Moments.of(*cells(seed), K) for seed in range(3)]
    votes = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [0.2, 0.0, 0.0, 0.0]]).double()
    means = torch.zeros(K, D, dtype=torch.float64)
    covariance = torch.zeros(D, D, dtype=torch.float64)
    for k in range(2):
        for vote, each in zip(votes[:, k], moments, strict=True):
            means[k] += vote * each.means[k] / votes[:, k].sum()
        for vote, each in zip(votes[:, k], moments, strict=True):
            apart = each.means[k] - means[k]  # domains that differ blur the class
            covariance += vote * (each.covariances[k] + torch.outer(apart, apart)) / votes.sum()
    expected = discriminant(means, covariance, torch.tensor([True, True, False, False]), 0.1)
    features = cells(4)[0]
    found = pooled_discriminant(moments, votes, 0.1)
    torch.testing.assert_close(found.log_probabilities(features), expected.log_probabilities(features))
    votes[0, 2] = 0.04  # hardly anybody is trusted with class 2
    assert pooled_discriminant(moments, votes, 0.1).biases.isfinite().tolist() == [True, True, False, False]


def test_classes_without_a_prototype_never_win() -> None:
    features, labels = cells(2)
    moments = Moments.of(features, labels, K)
    judge = discriminant(moments.means, pooled(moments), torch.tensor([True, False, True, False]), 0.1)
    found = judge.log_probabilities(100 * features)
    assert (found[:, [1, 3]] == -torch.inf).all()
    torch.testing.assert_close(found[:, [0, 2]].exp().sum(1), torch.ones(len(found), dtype=torch.float64))


def test_a_feature_that_never_changes_says_nothing() -> None:
    features, labels = cells(3)
    expected, found = (
        discriminant(m.means, pooled(m), m.counts > 0, 0.1).log_probabilities(given)
        for given in (features, torch.cat([features, torch.full((len(features), 1), 3.0)], 1))
        for m in [Moments.of(given, labels, K)]
    )
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_features_are_taken_in_any_precision() -> None:
    judge = LinearClassifier(torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64))
    expected = torch.tensor([[2.0, 0.0]], dtype=torch.float64).log_softmax(1)
    torch.testing.assert_close(judge.log_probabilities(torch.tensor([[2.0, 0.0]])), expected)

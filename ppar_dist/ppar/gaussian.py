"""Classes as Gaussians around their prototypes, with one covariance: a linear classifier in closed form.

Letters: M domains, K classes, D width of the features, N cells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

_SILENT = 0.05  # sum of votes below which nobody knows a class


@dataclass(frozen=True)
class Moments:
    """Number, mean and covariance of the features of each class; 0 where a class has none."""

    counts: Float[Tensor, " K"]
    means: Float[Tensor, "K D"]
    covariances: Float[Tensor, "K D D"]

    @classmethod
    def of(cls, features: Float[Tensor, "N D"], labels: Int64[Tensor, " N"], num_classes: int) -> Moments:
        """Moments of ``features`` by label, in float64."""
        width = features.shape[1]
        counts = torch.bincount(labels, minlength=num_classes)[:num_classes].double()
        means = torch.zeros(num_classes, width, dtype=torch.float64)
        covariances = torch.zeros(num_classes, width, width, dtype=torch.float64)
        for k in counts.nonzero().flatten().tolist():
            own = features[labels == k].double()
            means[k] = own.mean(0)
            centred = own - means[k]
            covariances[k] = centred.t() @ centred / len(own)
        return cls(counts, means, covariances)


@dataclass(frozen=True)
class LinearClassifier:
    """Logits W f + b; classes that it does not know have a bias of -inf."""

    weights: Float[Tensor, "K D"]
    biases: Float[Tensor, " K"]

    def log_probabilities(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "N K"]:
        """Log posteriors of the classes, all as probable before a feature is seen."""
        return (features.to(self.weights.dtype) @ self.weights.t() + self.biases).log_softmax(1)


def discriminant(
    means: Float[Tensor, "K D"],
    covariance: Float[Tensor, "D D"],
    known: Tensor,
    shrinkage: float,
) -> LinearClassifier:
    """The linear discriminant of Gaussians with one covariance and equal priors.

    w_k = S⁻¹ m_k and b_k = -½ m_kᵀ S⁻¹ m_k (Hastie, Tibshirani, Friedman: The Elements of Statistical
    Learning, 4.3), with S of `shrink`.

    Args:
        means: m, the prototypes.
        covariance: C, within classes.
        known: (K,) the classes that have a prototype.
        shrinkage: λ, 0 to 1.
    """
    shrunk = shrink(covariance, shrinkage)
    weights = torch.linalg.solve(shrunk, means.t()).t()  # (K, D)
    biases = -0.5 * (weights * means).sum(1)
    return LinearClassifier(weights, biases.masked_fill(~known, -torch.inf))


def shrink(covariance: Float[Tensor, "D D"], shrinkage: float) -> Float[Tensor, "D D"]:
    """(1 - λ) C + λ diag C, so that few cells are enough for many features."""
    diagonal = covariance.diagonal().clamp_min(1e-12 * covariance.diagonal().max().clamp_min(1e-30))
    shrunk = (1.0 - shrinkage) * covariance
    shrunk.diagonal().copy_(diagonal)
    return shrunk


@dataclass(frozen=True)
class Pooled:
    """Prototypes and the covariance of all domains."""

    means: Float[Tensor, "K D"]
    covariance: Float[Tensor, "D D"]  # within classes
    known: Bool[Tensor, " K"]  # the classes that have a prototype


def pooled_moments(moments: Sequence[Moments], votes: Float[Tensor, "M K"]) -> Pooled:
    """Domains' prototypes and covariances as one, each domain and class counting by its vote.

    Domains that differ in a class blur it: the distance of their means adds to the covariance.

    Args:
        moments: by domain.
        votes: 0 leaves a domain's class out; the sizes of domains do not matter.
    """
    votes_by_class = votes.sum(0)  # (K,)
    known = votes_by_class >= _SILENT
    shares = votes / votes_by_class.clamp_min(_SILENT)
    means = torch.zeros_like(moments[0].means)
    for share, each in zip(shares, moments, strict=True):
        means += share.unsqueeze(1) * each.means
    width = means.shape[1]
    total = torch.zeros(width, width, dtype=means.dtype)
    for vote, each in zip(votes, moments, strict=True):
        for k in vote.nonzero().flatten().tolist():
            apart = each.means[k] - means[k]
            total += vote[k] * (each.covariances[k] + torch.outer(apart, apart))
    return Pooled(means, total / votes.sum().clamp_min(_SILENT), known)


def pooled_discriminant(
    moments: Sequence[Moments], votes: Float[Tensor, "M K"], shrinkage: float
) -> LinearClassifier:
    """The `discriminant` of `pooled_moments`."""
    pooled = pooled_moments(moments, votes)
    return discriminant(pooled.means, pooled.covariance, pooled.known, shrinkage)

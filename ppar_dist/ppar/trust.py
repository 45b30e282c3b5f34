"""Trust in the labels of each source and class: what the other sources' prototypes say about its cells.

A network learns the labelling habits of each of its sources and then finds them reliable. So the judges
look at features that no label of the run has touched, those of the tower as it was loaded, and the judge of
a domain knows the other domains alone. Ours, not the paper's; see docs/method.md, "Trust".

Letters: M domains, K classes, D width of the features, N cells of a domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from ppar_dist.config.method_section import TrustConfig
from ppar_dist.ppar.gaussian import LinearClassifier, Moments, pooled_discriminant

_WITNESSES = 2  # other domains that must have a class: of two that contradict, either may be wrong
_FEWEST = 20  # cells of a class of a domain that say anything
_SHRINKAGE = 0.1
_ROUNDS = 10  # of judging by those that are trusted; the table settles in four or five
_SETTLED = 1e-3
_RARE = 0.1  # share of an even share of the cells, below which a domain hardly has a class


@dataclass(frozen=True)
class Cells:
    """Labelled cells of one domain."""

    features: Float[Tensor, "N D"]
    labels: Int64[Tensor, " N"]
    seen: Int64[Tensor, " K"] | None = None  # cells by label before some were left out; None: all are here

    @classmethod
    def joined(cls, parts: Sequence[Cells], width: int, num_classes: int) -> Cells:
        """The cells of all parts; none of ``width`` features where there is no part."""
        features = [torch.zeros(0, width), *(part.features for part in parts)]
        labels = [torch.zeros(0, dtype=torch.int64), *(part.labels for part in parts)]
        seen = [torch.zeros(num_classes, dtype=torch.int64), *(part.by_label(num_classes) for part in parts)]
        return cls(torch.cat(features), torch.cat(labels), torch.stack(seen).sum(0))

    def by_label(self, num_classes: int) -> Int64[Tensor, " K"]:
        """How many cells the domain has of each label, those that were left out included."""
        return torch.bincount(self.labels, minlength=num_classes) if self.seen is None else self.seen

    def thinned(self, num_classes: int, most: int) -> Cells:
        """At most ``most`` cells of each class, spread evenly."""
        kept = []
        for k in range(num_classes):
            own = (self.labels == k).nonzero().flatten()
            kept.append(own[torch.arange(min(most, len(own))) * len(own) // max(1, min(most, len(own)))])
        chosen = torch.cat(kept)
        return Cells(self.features[chosen], self.labels[chosen], self.by_label(num_classes))


@dataclass(frozen=True)
class Survey:
    """What the domains say about each other's labels."""

    agreement: Float[Tensor, "M K"]  # mean p_y / max p of the domain's cells of the class; nan: not judged
    trust: Float[Tensor, "M K"]  # 0 to 1; 1 where not judged
    likelihood: Float[Tensor, "M K K"]  # of each label in each class; see `label_likelihood`
    judges: list[LinearClassifier]  # by domain; that of domain m has never seen a label of m


def survey(domains: Sequence[Cells], num_classes: int, config: TrustConfig) -> Survey:
    """Judge every domain by the others, again and again, until those that are wrong have lost their vote.

    trust = min(1, a / (tolerance · ā))^gamma, with a the agreement of a domain's cells of a class and ā that
    of the other domains' cells of that class, each counting by its trust. So a class that is hard for all is
    not distrusted, and sources that agree as well as the others are trusted in full.
    """
    moments = [Moments.of(cells.features, cells.labels, num_classes) for cells in domains]
    there = torch.stack([each.counts for each in moments]) >= _FEWEST  # (M, K)
    trust = there.double()
    for _ in range(_ROUNDS):
        judges = [pooled_discriminant(moments, _without(trust, m), _SHRINKAGE) for m in range(len(domains))]
        agreement = _agreement(domains, judges, there)
        before, trust = trust, _trust(agreement, trust, config) * there
        if (trust - before).abs().max() < _SETTLED:
            break
    trust = torch.where(agreement.isnan(), 1.0, trust)
    return Survey(agreement, trust, label_likelihood(domains, judges, trust), judges)


def label_likelihood(
    domains: Sequence[Cells], judges: Sequence[LinearClassifier], trust: Float[Tensor, "M K"]
) -> Float[Tensor, "M K K"]:
    """A_myj: how likely label y of domain m is on class j, beside the class on which it is likeliest.

    A label that is trusted in full is its class: 1 there and 0 elsewhere. Of one that is not, the judge
    says on which classes the domain's cells with that label lie.

        s_yj = t_y [y = j] + (1 - t_y) mean_n p_nj             over the cells n with label y
        c_yj = N_y s_yj                                        N_y: how many cells have the label
        A_yj ∝ c_yj / (Σ_y' c_y'j + c₀)                        c₀ = 0.1 Σ_y'j' c_y'j' / K

    Without c₀ this is P(label y | class j), which says nothing of a class that the domain hardly has: c₀
    keeps a label from standing for such a class. Only ratios within a label count in a loss.
    """
    classes = trust.shape[1]
    own = torch.eye(classes, dtype=torch.float64)
    found = []
    for cells, judge, vote in zip(domains, judges, trust.double().unsqueeze(2), strict=True):
        judged = torch.zeros(classes, classes, dtype=torch.float64)
        if judge.biases.isfinite().any():
            probable = judge.log_probabilities(cells.features).exp().double()
            judged.index_add_(0, cells.labels, probable)
        here = torch.bincount(cells.labels, minlength=classes).clamp_min(1).unsqueeze(1)
        said = vote * own + (1.0 - vote) * judged / here
        count = cells.by_label(classes).clamp_min(1).unsqueeze(1) * said
        likely = count / (count.sum(0) + _RARE * count.sum() / classes)
        found.append(likely / likely.amax(1, keepdim=True))
    return torch.stack(found)


def _without(votes: Float[Tensor, "M K"], domain: int) -> Float[Tensor, "M K"]:
    others = votes.clone()
    others[domain] = 0.0
    return others


def _agreement(
    domains: Sequence[Cells], judges: Sequence[LinearClassifier], there: Bool[Tensor, "M K"]
) -> Float[Tensor, "M K"]:
    found = torch.full(there.shape, torch.nan, dtype=torch.float64)
    for m, (cells, judge) in enumerate(zip(domains, judges, strict=True)):
        if judge.biases.isfinite().sum() < 2:
            continue  # nothing to choose between
        agreed = reliability(judge.log_probabilities(cells.features), cells.labels).exp()
        others = there.sum(0) - there[m].long()
        for k in (there[m] & (others >= _WITNESSES)).nonzero().flatten().tolist():
            if judge.biases[k].isfinite():
                found[m, k] = agreed[cells.labels == k].mean()
    return found


def reliability(logits: Float[Tensor, "N K"], labels: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """log p_y - max_k log p_k of cells with label y, in nats, at most 0."""
    return logits.gather(1, labels.unsqueeze(1))[:, 0] - logits.amax(1)


def _trust(
    agreement: Float[Tensor, "M K"], votes: Float[Tensor, "M K"], config: TrustConfig
) -> Float[Tensor, "M K"]:
    judged = ~agreement.isnan()
    votes = (votes * judged).clamp_min(1e-3 * judged.double())
    sums, weights = (votes * agreement.nan_to_num()).sum(0), votes.sum(0)  # (K,)
    others = weights - votes
    mean = (sums - votes * agreement.nan_to_num()) / others.clamp_min(1e-12)
    enough = config.tolerance * mean
    less = judged & (others > 0) & (agreement < enough)  # where both are 0, nobody is worse than the others
    ratio = torch.where(less, agreement / enough, 1.0)
    return ratio**config.gamma

"""Trust in sources and classes: whom a survey believes, and what it takes distrusted labels for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from ppar_dist.config.method_section import TrustConfig
from ppar_dist.ppar.trust import Cells, Survey, reliability, survey

K, D = 4, 6
CONFIG = TrustConfig(enabled=True)
EXCHANGED = torch.tensor([1, 0, 2, 3])
EXCHANGED_IN_LAST = [[1.0] * K] * 3 + [[0.0, 0.0, 1.0, 1.0]]


def domain(seed: int, each: int = 100) -> Cells:
    """``each`` cells of every class around its place, which is the same in all domains but for a shift."""
    places = 1.5 * torch.randn(K, D, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(K * each) % K
    shift = 0.2 * torch.randn(D, generator=generator)
    return Cells(places[labels] + shift + 0.5 * torch.randn(K * each, D, generator=generator), labels)


def wrong(cells: Cells) -> Cells:
    """Classes 0 and 1 are called by each other's name."""
    return replace(cells, labels=EXCHANGED[cells.labels])


def judged(domains: Sequence[Cells]) -> Survey:
    return survey(domains, K, CONFIG)


def assert_trust(found: Survey, expected: Sequence[Sequence[float]]) -> None:
    """Each entry is at most 0.1 away from 0 or 1."""
    assert (found.trust - torch.tensor(expected)).abs().max() < 0.1, found.trust


def test_thinned_keeps_some_of_every_class_spread_evenly() -> None:
    labels = torch.tensor([0] * 10 + [2] * 3 + [1] * 5)
    kept = Cells(torch.arange(18.0).view(-1, 1), labels).thinned(K, 4)
    assert kept.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2]
    assert kept.features.flatten().tolist() == [0, 2, 5, 7, 13, 14, 15, 16, 10, 11, 12]


def test_reliability_is_the_distance_to_the_best_class() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0], [0.0, -1.0, -torch.inf]])
    assert reliability(logits, torch.tensor([0, 0])).tolist() == [-2.0, 0.0]


def test_clean_sources_are_trusted_in_full() -> None:
    found = judged([domain(seed) for seed in range(4)])
    assert (found.trust == 1).all()
    assert (found.agreement > 0.9).all()


def test_two_exchanged_classes_are_found() -> None:
    found = judged([domain(0), domain(1), domain(2), wrong(domain(3))])
    assert_trust(found, EXCHANGED_IN_LAST)
    assert (found.agreement[3, :2] < 0.1).all()


def test_labels_at_random_are_found() -> None:
    random = torch.randint(0, K, (100 * K,), generator=torch.Generator().manual_seed(5))
    found = judged([domain(0), domain(1), domain(2), replace(domain(3), labels=random)])
    assert_trust(found, [[1.0] * K] * 3 + [[0.0] * K])


def test_domains_count_alike_whatever_their_size() -> None:
    assert_trust(judged([domain(0), domain(1), domain(2), wrong(domain(3, each=2000))]), EXCHANGED_IN_LAST)


def test_a_vote_that_is_lost_misleads_nobody() -> None:
    """With every vote counted, the wrong domain is half of the judge of each of the right ones."""
    found = judged([domain(0), domain(1), wrong(domain(2))])
    assert_trust(found, EXCHANGED_IN_LAST[1:])
    assert (found.agreement[:2] > 0.9).all()


def test_a_class_that_is_hard_for_all_is_not_distrusted() -> None:
    """Cells of classes 0 and 1 lie far from their places."""
    domains = [domain(seed) for seed in range(4)]
    for seed, cells in enumerate(domains):
        noise = torch.randn(cells.features.shape, generator=torch.Generator().manual_seed(100 + seed))
        cells.features[cells.labels < 2] += 3 * noise[cells.labels < 2]
    found = judged(domains)
    assert (found.agreement[:, :2] < 0.9).all()
    assert (found.trust > 0.9).all()


@pytest.mark.parametrize("spoiled", [False, True])
def test_a_linear_map_of_the_features_changes_little(spoiled: bool) -> None:
    """Nothing but the shrinkage of correlations depends on it; a change of units is no change at all."""
    domains = [domain(0), domain(1), domain(2), wrong(domain(3)) if spoiled else domain(3)]
    expected = judged(domains)
    generator = torch.Generator().manual_seed(9)
    units = torch.diag(10 ** torch.linspace(-2, 2, D))
    turn = torch.linalg.qr(torch.randn(D, D, generator=generator))[0]
    for mix, tolerance in ((units, 1e-4), (turn @ torch.diag(torch.linspace(0.5, 2, D)), 0.1)):
        found = judged(
            [replace(cells, features=cells.features @ mix + 7.0 * mix.sum(0)) for cells in domains]
        )
        torch.testing.assert_close(found.trust, expected.trust, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.agreement, expected.agreement, rtol=0, atol=tolerance)


def test_the_order_of_the_domains_does_not_matter() -> None:
    domains = [domain(0), domain(1), wrong(domain(2)), domain(3)]
    order = [2, 0, 3, 1]
    found, expected = judged([domains[m] for m in order]), judged(domains)
    torch.testing.assert_close(found.trust, expected.trust[order])
    torch.testing.assert_close(found.agreement, expected.agreement[order])
    torch.testing.assert_close(found.likelihood, expected.likelihood[order])
    for judge, m in zip(found.judges, order, strict=True):
        torch.testing.assert_close(judge.weights, expected.judges[m].weights)


def test_the_judge_of_a_domain_has_never_seen_its_labels() -> None:
    """But for the votes of the others, which its labels may cost: here nobody loses one."""
    found, expected = (
        judged([domain(seed) for seed in range(4)]),
        judged([domain(seed) for seed in (0, 1, 2, 9)]),
    )
    assert torch.equal(found.judges[3].weights, expected.judges[3].weights)
    assert not torch.equal(found.judges[0].weights, expected.judges[0].weights)


def test_a_single_domain_is_trusted_and_not_judged() -> None:
    found = judged([wrong(domain(0))])
    assert (found.trust == 1).all()
    assert torch.equal(found.likelihood[0], torch.eye(K, dtype=torch.float64))
    assert found.agreement.isnan().all()


def without(cells: Cells, k: int, keep: int = 0) -> Cells:
    """``cells`` with ``keep`` of class ``k``."""
    own = (cells.labels == k).nonzero().flatten()
    kept = torch.ones(len(cells.labels), dtype=torch.bool)
    kept[own[keep:]] = False
    return Cells(cells.features[kept], cells.labels[kept])


def test_a_class_of_one_domain_alone_is_not_judged() -> None:
    found = judged([without(domain(0), 3), without(domain(1), 3), domain(2)])
    assert found.agreement[:, 3].isnan().all()
    assert (found.agreement[:, :3] > 0.9).all()
    assert (found.trust == 1).all()


@pytest.mark.parametrize(("cells", "counts"), [(19, False), (20, True)])
def test_few_cells_of_a_class_say_nothing(cells: int, counts: bool) -> None:
    found = judged([domain(0), domain(1), domain(2), without(wrong(domain(3)), 0, cells)])
    assert bool(found.agreement[3, 0].isnan()) is not counts
    assert found.trust[3, 0] == 1 or counts
    assert found.trust[3, 1] < 0.1


def test_trust_falls_with_agreement_as_the_formula_says() -> None:
    domains = [domain(0), domain(1), domain(2), wrong(domain(3))]
    mixed = torch.arange(100 * K) % 8 < 4
    domains[3] = replace(domains[3], labels=torch.where(mixed, domain(3).labels, domains[3].labels))
    config = TrustConfig(enabled=True, tolerance=0.9, gamma=1.5)
    found = survey(domains, K, config)
    for k in range(K):
        others = [(float(found.trust[m, k]), float(found.agreement[m, k])) for m in range(3)]
        mean = sum(t * a for t, a in others) / sum(t for t, _ in others)
        expected = min(1.0, float(found.agreement[3, k]) / (0.9 * mean)) ** 1.5
        assert float(found.trust[3, k]) == pytest.approx(expected, abs=0.01)
    assert 0.2 < found.trust[3, 0] < 0.8


def test_of_two_domains_that_contradict_neither_is_distrusted() -> None:
    found = judged([domain(0), wrong(domain(1))])
    assert found.agreement.isnan().all()
    assert (found.trust == 1).all()


def test_agreements_that_vanish_spoil_nothing() -> None:
    """Classes so far apart that a wrong label has a probability of 0 in any precision."""
    labels = torch.arange(4 * 50) % 4
    places = 1e3 * torch.eye(4, D)
    noise = 0.005 * torch.randn(len(labels), D, generator=torch.Generator().manual_seed(3))
    right = Cells(places[labels] + noise, labels)
    found = judged([right, wrong(right), right, wrong(right)])
    assert found.trust.isfinite().all()
    assert found.likelihood.isfinite().all()
    assert (found.trust[:, 2:] == 1).all()


def test_labels_that_are_trusted_in_full_are_their_classes() -> None:
    found = judged([domain(0), domain(1), domain(2), wrong(domain(3))])
    own = torch.eye(K, dtype=torch.float64)
    assert torch.equal(found.likelihood[:3], own.repeat(3, 1, 1))
    assert torch.equal(found.likelihood[3, 2:], own[2:])


def test_exchanged_labels_are_taken_for_each_other() -> None:
    found = judged([domain(0), domain(1), domain(2), wrong(domain(3, each=500))])
    expected = torch.eye(K)[EXCHANGED]
    assert (found.likelihood[3] - expected).abs().max() < 0.1, found.likelihood[3]


def test_a_label_that_covers_two_classes_may_be_either() -> None:
    """As in a legend that calls both by one name."""
    cells = domain(3, each=500)
    merged = replace(cells, labels=torch.where(cells.labels == 1, 0, cells.labels))
    found = judged([domain(0), domain(1), domain(2), merged])
    assert found.trust[3, 0] < 0.1
    assert (found.likelihood[3, 0, :2] > 0.9).all()
    assert (found.likelihood[3, 0, 2:] < 0.1).all()


@pytest.mark.parametrize("each", [40, 100, 2000])
def test_labels_at_random_say_next_to_nothing(each: int) -> None:
    """Of the likelihoods of two classes, no label says that they differ much."""
    random = torch.randint(0, K, (each * K,), generator=torch.Generator().manual_seed(5))
    found = judged([domain(0), domain(1), domain(2), replace(domain(3, each=each), labels=random)])
    likelihood = found.likelihood[3] / found.likelihood[3].mean(0)  # a class may be likelier under any label
    assert (likelihood.amax(0) < 2.5).all()
    if each == 2000:
        assert (found.likelihood[3] > 0.85).all()


@pytest.mark.parametrize("part", [100, 400, 2000, 4000])
def test_a_label_of_a_class_that_is_not_there_stands_for_what_is(part: int) -> None:
    """Label 0 on some cells of class 1, in a domain without a cell of class 0."""
    cells = without(domain(3, each=4000), 0)
    ones = (cells.labels == 1).nonzero().flatten()[:part]
    labels = cells.labels.clone()
    labels[ones] = 0
    found = judged([domain(0), domain(1), domain(2), replace(cells, labels=labels)])
    assert found.trust[3, 0] < 0.1
    assert found.likelihood[3, 0, 1] == 1
    assert found.likelihood[3, 0, 0] < 0.4
    assert torch.equal(found.likelihood[3, 1], torch.eye(K, dtype=torch.float64)[1])


def test_cells_that_were_left_out_count() -> None:
    """Two thirds of class 1 are called 0; of each label as many cells are kept."""
    cells = domain(3, each=6000)
    labels = cells.labels.clone()
    ones = (labels == 1).nonzero().flatten()
    labels[ones[: 2 * len(ones) // 3]] = 0
    whole = replace(cells, labels=labels)
    found = judged([domain(0), domain(1), domain(2), whole]).likelihood[3]
    thinned = judged([domain(0), domain(1), domain(2), whole.thinned(K, 497)]).likelihood[3]
    assert 0.5 < found[0, 1] < 0.8  # 4000 of 6000 cells of class 1, and all of class 0
    torch.testing.assert_close(thinned, found, rtol=0, atol=0.02)
    parts = [whole.thinned(K, 497), Cells(torch.zeros(0, D), torch.zeros(0, dtype=torch.int64))]
    assert Cells.joined(parts, D, K).by_label(K).tolist() == torch.bincount(labels).tolist()


def test_the_likelihood_is_the_formula() -> None:
    domains = [domain(0), domain(1), domain(2), wrong(domain(3))]
    mixed = torch.arange(100 * K) % 8 < 4
    domains[3] = replace(domains[3], labels=torch.where(mixed, domain(3).labels, domains[3].labels))
    found = survey(domains, K, TrustConfig(enabled=True, gamma=0.3))
    assert 0.2 < found.trust[3, 0] < 0.9
    labels = domains[3].labels.tolist()
    probable = found.judges[3].log_probabilities(domains[3].features).exp().tolist()
    counts = [[0.0] * K for _ in range(K)]
    for y in range(K):
        trust = float(found.trust[3, y])
        own = [row for row, label in zip(probable, labels, strict=True) if label == y]
        for j in range(K):
            mean = sum(row[j] for row in own) / len(own)
            counts[y][j] = len(own) * (trust * (y == j) + (1 - trust) * mean)
    floor = 0.1 * sum(map(sum, counts)) / K
    likely = [[counts[y][j] / (sum(row[j] for row in counts) + floor) for j in range(K)] for y in range(K)]
    expected = [[value / max(row) for value in row] for row in likely]
    torch.testing.assert_close(found.likelihood[3], torch.tensor(expected, dtype=torch.float64))

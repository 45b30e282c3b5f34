"""Judges against autograd, loops, and what they are for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from ppar_dist.ppar.judges import Judges, cell_features, reliability

M, K, W, B, N = 3, 4, 5, 6, 40


def cells(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features around a direction per class, labels with ignored ones, domains."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(K, W, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(0, K, (B, N), generator=generator)
    features = directions[labels].transpose(1, 2) + 0.3 * torch.randn(B, W, N, generator=generator)
    labels[:, ::7] = 255
    return features, labels, torch.arange(B) % M


def test_the_gradient_is_that_of_the_cross_entropy_on_the_other_domains() -> None:
    features, labels, domains = cells(1)
    judges = Judges(M, K, W)
    with torch.no_grad():
        judges.weights.normal_()
    judges.seen[0, 0], judges.seen[1, 0], judges.seen[2, 0] = 1000, 200, 3
    shares = judges.shares()
    assert shares.tolist() == pytest.approx([401 / 1000, 401 / 200, 10.0])  # the last would be 134
    sums, counts = judges.gradient(features, labels, domains)
    for m in range(M):
        weights = judges.weights[m].detach().requires_grad_()
        others = [i for i in range(B) if int(domains[i]) != m]
        logits = weights[:, :-1] @ features[others] + weights[:, -1:]
        losses = F.cross_entropy(logits, labels[others], ignore_index=255, reduction="none")
        (expected,) = torch.autograd.grad((losses * shares[domains[others]].view(-1, 1)).sum(), weights)
        torch.testing.assert_close(sums[m], expected, rtol=1e-4, atol=1e-4)
        mine = labels[domains == m]
        assert counts[m].tolist() == torch.bincount(mine[mine < K], minlength=K).tolist()


def test_a_judge_never_learns_from_its_own_domain() -> None:
    features, labels, domains = cells(1)
    wrong = torch.where((domains == 1).view(-1, 1) & (labels < K), (labels + 1) % K, labels)
    learned = []
    for given in (labels, wrong):
        judges = Judges(M, K, W)
        for _ in range(5):
            judges.fold(*judges.gradient(features, given, domains))
        learned.append(judges.weights.detach())
    assert torch.equal(learned[0][1], learned[1][1])
    assert not torch.allclose(learned[0][0], learned[1][0])


def test_a_consistently_wrong_domain_is_found() -> None:
    judges = Judges(M, K, W)
    for step in range(60):
        features, labels, domains = cells(step)
        wrong = torch.where((domains == 1).view(-1, 1) & (labels < K), (labels + 1) % K, labels)
        r, judged = reliability(judges.logits(features, domains), wrong, judges.known()[domains])
        judges.fold(*judges.gradient(features, wrong, domains))
    assert judged[:, 1].all()
    assert not judged[:, 0].any()
    right, bad = r[domains != 1][judged[domains != 1]], r[domains == 1][judged[domains == 1]]
    assert bad.exp().mean() < 0.3 < 0.7 < right.exp().mean()


def test_a_large_wrong_domain_does_not_outvote_two_small_right_ones() -> None:
    judges = Judges(M, K, W)
    for step in range(80):
        features, labels, _ = cells(step)
        domains = torch.tensor([0, 2, 1, 1, 1, 1])
        wrong = torch.where((domains == 1).view(-1, 1) & (labels < K), (labels + 1) % K, labels)
        r, judged = reliability(judges.logits(features, domains), wrong, judges.known()[domains])
        judges.fold(*judges.gradient(features, wrong, domains))
    small, large = (r[rows][judged[rows]].exp().mean() for rows in (domains != 1, domains == 1))
    assert large < 0.3 < 0.7 < small


def test_only_classes_of_other_domains_are_compared() -> None:
    judges = Judges(2, 3, W)
    judges.seen += torch.tensor([[5, 5, 0], [5, 0, 0]])  # class 1 in domain 0 alone, class 2 nowhere
    assert judges.known().tolist() == [[True, False, False], [True, True, False]]
    logits = torch.tensor([[[1.0, 1.0], [3.0, 3.0], [9.0, 9.0]]]).expand(2, -1, -1)
    r, judged = reliability(logits, torch.tensor([[0, 1], [0, 1]]), judges.known())
    assert judged.tolist() == [[True, False], [True, True]]
    assert r.tolist() == [[0.0, 0.0], [-2.0, 0.0]]


def test_features_of_cells_are_standardised_over_channels() -> None:
    found = cell_features(torch.randn(2, W, 3, 4) * 7 + 5)
    assert found.shape == (2, W, 12)
    torch.testing.assert_close(found.mean(1), torch.zeros(2, 12), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.var(1, correction=0), torch.ones(2, 12), atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [0, 3])
def test_a_restored_state_continues_bit_for_bit(steps: int) -> None:
    judges, copy = Judges(M, K, W), Judges(M, K, W)
    for step in range(steps):
        judges.fold(*judges.gradient(*cells(step)))
    copy.load_state_dict(judges.state_dict())
    for step in range(steps, steps + 3):
        for each in (judges, copy):
            each.fold(*each.gradient(*cells(step)))
    for name, value in judges.state_dict().items():
        assert torch.equal(value, copy.state_dict()[name]), name

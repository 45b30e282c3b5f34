"""The bank and the visual text prototypes against loops written from the formulas."""

from __future__ import annotations

import math

import pytest
import torch

from ppar_dist.ppar.cells import unit
from ppar_dist.ppar.prototypes import PrototypeBank, visual_text_prototypes

M, K, D = 2, 4, 3


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Sums and counts of five batches; class 3 never occurs, class 2 in domain 1 alone."""
    torch.manual_seed(0)
    found = []
    for number in range(5):
        counts = torch.randint(1, 9, (M, K)).float()
        counts[:, 3] = 0
        counts[0, 2] = 0
        counts[number % M, 0] = 0  # absent from every other batch
        if number == 3:
            counts.zero_()  # nothing valid
        found.append((torch.randn(M, K, D) * counts.unsqueeze(-1), counts))
    return found


def naive_bank(momentum: float) -> tuple[list, list, list]:
    sums = [[[0.0] * D for _ in range(K)] for _ in range(M)]
    counts = [[0.0] * K for _ in range(M)]
    total = [[0.0] * K for _ in range(M)]
    for batch_sums, batch_counts in batches():
        for m in range(M):
            for k in range(K):
                n = float(batch_counts[m, k])
                total[m][k] += n
                if n == 0:
                    continue
                counts[m][k] = momentum * counts[m][k] + (1 - momentum) * n
                for d in range(D):
                    sums[m][k][d] = momentum * sums[m][k][d] + (1 - momentum) * float(batch_sums[m, k, d])
    return sums, counts, total


def norm(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in vector))
    return [x / length if length else 0.0 for x in vector]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_bank_is_the_loop(momentum: float) -> None:
    bank = PrototypeBank(M, K, D, momentum)
    for sums, counts in batches():
        bank.fold(sums, counts)
    sums, counts, total = naive_bank(momentum)
    assert torch.allclose(bank.sums, torch.tensor(sums), rtol=1e-5, atol=1e-6)
    assert torch.allclose(bank.counts, torch.tensor(counts), rtol=1e-6)
    assert bank.cells_total.tolist() == total
    centroids, seen = bank.centroids()
    means = bank.class_means()
    for k in range(K):
        directions = []
        for m in range(M):
            assert bool(seen[m, k]) == (total[m][k] > 0)
            if total[m][k]:
                directions.append(norm([x / counts[m][k] for x in sums[m][k]]))
                assert centroids[m, k].tolist() == pytest.approx(directions[-1], abs=1e-5)
        expected = [sum(x) / len(directions) for x in zip(*directions, strict=True)] or [0.0] * D
        assert means[k].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_batch_without_a_class_keeps_its_value_bit_for_bit() -> None:
    bank = PrototypeBank(1, 2, D, 0.9)
    bank.fold(torch.randn(1, 2, D), torch.tensor([[3.0, 4.0]]))
    before = bank.sums.clone(), bank.counts.clone()
    bank.fold(torch.zeros(1, 2, D), torch.tensor([[0.0, 0.0]]))
    assert torch.equal(bank.sums, before[0])
    assert torch.equal(bank.counts, before[1])


def test_domains_count_alike_whatever_their_size() -> None:
    bank = PrototypeBank(2, 1, 2, 0.9)
    bank.fold(torch.tensor([[[1000.0, 0.0]], [[0.0, 1.0]]]), torch.tensor([[1000.0], [1.0]]))
    assert bank.class_means()[0].tolist() == pytest.approx([0.5, 0.5])


def test_a_distrusted_domain_has_a_small_share() -> None:
    bank = PrototypeBank(3, 2, 2, 0.9)
    bank.fold(
        torch.tensor([[[5.0, 0.0], [0.0, 3.0]], [[0.0, 2.0], [0.0, 0.0]], [[0.0, 0.0], [4.0, 0.0]]]),
        torch.tensor([[5.0, 3.0], [2.0, 0.0], [0.0, 4.0]]),
    )
    trust = torch.tensor([[1.0, 0.0], [0.25, 1.0], [1.0, 0.0]])
    means = bank.class_means(trust)
    assert means[0].tolist() == pytest.approx([0.8, 0.2])
    assert means[1].tolist() == pytest.approx([0.5, 0.5])  # nobody is trusted: all alike
    torch.testing.assert_close(bank.class_means(torch.ones(3, 2)), bank.class_means())


def test_cells_are_counted_past_the_end_of_float32() -> None:
    bank = PrototypeBank(1, 1, 1, 0.9)
    bank.cells_total += 2.0**24
    bank.fold(torch.ones(1, 1, 1), torch.ones(1, 1))
    assert float(bank.cells_total) == 2**24 + 1


def test_visual_text_prototypes_are_the_loop() -> None:
    torch.manual_seed(2)
    text = unit(torch.randn(K, D, dtype=torch.float64))
    means = torch.randn(K, D, dtype=torch.float64) * 0.3
    means[3] = 0
    cells = torch.tensor([5.0, 2000.0, 1e7, 0.0])
    found = visual_text_prototypes(text, means, cells, 0.6, 2000.0)
    for k in range(K):
        alpha = 0.6 * (1 - math.exp(-float(cells[k]) / 2000.0))
        mu = norm(means[k].tolist())
        mixed = [(1 - alpha) * t + alpha * m for t, m in zip(text[k].tolist(), mu, strict=True)]
        assert found[k].tolist() == pytest.approx(norm(mixed))
    assert found[3].tolist() == pytest.approx(text[3].tolist())  # unseen: the text prior
    only_vision = visual_text_prototypes(text, means, torch.full((K,), 1e9), 1.0, 1.0)
    assert only_vision[0].tolist() == pytest.approx(norm(means[0].tolist()))

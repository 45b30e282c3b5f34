"""The order is a pure function: properties over domains, batches, ranks, workers and resumes."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ppar_dist.data.batches import global_batch, micro_batches, rank_slice
from ppar_dist.data.order import DomainShare, Order, Permutation

SHARES = st.lists(st.tuples(st.integers(1, 90), st.floats(0.01, 100.0)), min_size=1, max_size=4).map(
    lambda pairs: [DomainShare(f"d{i}", size, weight) for i, (size, weight) in enumerate(pairs)]
)
PINNED = [(0, 0, 132), (0, 0, 249), (1, 0, 86), (0, 2, 33), (0, 339249, 47)]
ORDERS = st.builds(Order, SHARES, st.integers(-5, 2**63), st.integers(1, 20), st.integers(1, 9))


@settings(max_examples=60)
@given(
    order=ORDERS,
    world=st.integers(1, 6),
    per_rank=st.integers(1, 5),
    micro=st.none() | st.integers(1, 5),
    workers=st.integers(1, 4),
    resume=st.integers(0, 8),
    origin=st.integers(0, 10_000),
)
def test_one_global_sequence(
    order: Order, world: int, per_rank: int, micro: int | None, workers: int, resume: int, origin: int
) -> None:
    """Any world size, batch, workers and resume give positions in their order, each exactly once."""
    size, steps = world * per_rank, 8
    stop = origin + steps * size
    seen: list[int] = []
    for first, last in ((origin, origin + resume * size), (origin + resume * size, stop)):
        received = []
        for rank in range(world):
            batches = list(micro_batches(first, last, size, micro, rank, world))
            turns = [batches[worker::workers] for worker in range(workers)]  # what each worker makes
            merged = [b for row in itertools.zip_longest(*turns) for b in row if b is not None]
            assert merged == batches
            received.append([list(part) for part in merged])
        per_step = -(-per_rank // micro) if micro else 1
        for step in range((last - first) // size):
            for parts in received:
                seen += itertools.chain(*parts[step * per_step : (step + 1) * per_step])
    assert seen == list(range(origin, stop))
    fresh = Order(order.shares, order.seed, order.block, order.window)
    assert [order.locate(p) for p in seen] == [fresh.locate(p) for p in seen]  # no state, no history


@settings(max_examples=40)
@given(order=ORDERS, epochs=st.integers(1, 3))
def test_every_sample_once_per_epoch_and_domain(order: Order, epochs: int) -> None:
    sequence: list[list[tuple[int, int]]] = [[] for _ in order.shares]
    needed = [epochs * share.size for share in order.shares]
    cycles = max(-(-need // quota) for need, quota in zip(needed, order.quotas, strict=True))
    for position in range(min(cycles * sum(order.quotas), 5_000)):
        domain, epoch, sample, _ = order.locate(position)
        sequence[domain].append((epoch, sample))
    for share, found in zip(order.shares, sequence, strict=True):
        for epoch in range(len(found) // share.size):
            part = found[epoch * share.size : (epoch + 1) * share.size]
            assert {e for e, _ in part} == {epoch}
            assert sorted(s for _, s in part) == list(range(share.size))


@settings(max_examples=40)
@given(order=ORDERS, position=st.integers(0, 3000), attempt=st.integers(0, 20))
def test_a_replacement_is_what_comes_later_of_the_same_domain(
    order: Order, position: int, attempt: int
) -> None:
    """Counted out along the plain sequence."""
    domain, left, later = order.locate(position).domain, attempt, position
    while left:
        later += 1
        left -= order.locate(later).domain == domain
    assert order.locate(position, attempt) == order.locate(later)


@settings(max_examples=25)
@given(SHARES, st.integers(0, 1000))
def test_domains_follow_their_weights(shares: list[DomainShare], seed: int) -> None:
    order = Order(shares, seed, 4, 4)
    cycle = sum(order.quotas)
    found = Counter(order.locate(p).domain for p in range(cycle))
    assert [found[d] for d in range(len(shares))] == order.quotas
    total = sum(share.weight for share in shares)
    for share, quota in zip(shares, order.quotas, strict=True):
        exact = share.weight / total * cycle
        assert quota >= 1
        assert abs(quota - exact) < 1 + len(shares)  # one by rounding, more only to feed tiny domains


def test_short_stretches_hold_the_domains_in_proportion() -> None:
    order = Order([DomainShare("a", 50, 1.0), DomainShare("b", 50, 3.0)], 0, 4, 4)
    for start in range(0, 2000, 40):
        share = sum(order.locate(p).domain for p in range(start, start + 40)) / 40
        assert abs(share - 0.75) <= 0.1


@settings(max_examples=100)
@given(st.integers(1, 400), st.integers(0, 2**64 - 1))
def test_permutation_is_a_bijection_with_its_inverse(n: int, key: int) -> None:
    permutation = Permutation(n, key)
    image = [permutation(i) for i in range(n)]
    assert sorted(image) == list(range(n))
    assert [permutation.inverse(i) for i in image] == list(range(n))


@pytest.mark.parametrize("n", [3, 5, 16, 37])
def test_permutation_spreads_evenly(n: int) -> None:
    """Over keys every place goes to every image equally often: within five standard deviations."""
    keys, table = 1500, np.zeros((n, n))
    for key in range(keys):
        permutation = Permutation(n, key * 0x9E3779B97F4A7C15 % 2**64)
        for i in range(n):
            table[i, permutation(i)] += 1
    expected = keys / n
    assert np.abs(table - expected).max() < 5 * np.sqrt(expected)


def test_reads_stay_local_and_epochs_differ() -> None:
    """Within a window of places only window * block samples are touched, in runs of whole blocks."""
    block, window, size = 16, 8, 16 * 64
    order = Order([DomainShare("a", size, 1.0)], 3, block, window)
    epochs = [[order.locate(e * size + i).sample for i in range(size)] for e in range(2)]
    assert epochs[0] != epochs[1]
    for start in range(0, size, block * window):
        part = epochs[0][start : start + block * window]
        assert len({sample // block for sample in part}) == window
        assert part != sorted(part)


def test_seeds_and_names_change_the_order() -> None:
    def sequence(name: str, seed: int) -> list[int]:
        order = Order([DomainShare(name, 200, 1.0)], seed, 8, 4)
        return [order.locate(p).sample for p in range(200)]

    assert len({tuple(sequence(*each)) for each in (("a", 0), ("a", 1), ("b", 0))}) == 3


def test_the_order_is_pinned() -> None:
    """A changed order would break the resume of every run there is: these figures stay."""
    order = Order([DomainShare("day", 274, 274.0), DomainShare("rain", 90, 90.0)], 7, 16, 8)
    found = [order.locate(p)[:3] for p in (0, 1, 2, 1000, 123_456_789)]
    assert [tuple(each) for each in found] == PINNED


def test_huge_positions_and_sizes_cost_nothing() -> None:
    order = Order([DomainShare("a", 10**12, 1.0), DomainShare("b", 3, 1.0)], 0, 16, 8)
    places = [order.locate(10**15 + i) for i in range(200)]
    assert {place.domain for place in places} == {0, 1}
    assert all(0 <= place.sample < order.shares[place.domain].size for place in places)


def test_slices_are_contiguous_and_even() -> None:
    assert list(global_batch(3, 4)) == [12, 13, 14, 15]
    slices = [rank_slice(2, 10, rank, 4) for rank in range(4)]
    assert [i for part in slices for i in part] == list(range(20, 30))
    assert {len(part) for part in slices} == {2, 3}


@pytest.mark.parametrize(
    ("shares", "block", "message"),
    [
        ([], 4, "at least one domain"),
        ([DomainShare("a", 0, 1.0)], 4, "domain a needs samples"),
        ([DomainShare("a", 3, -1.0)], 4, "positive weight"),
        ([DomainShare("a", 3, float("nan"))], 4, "positive weight"),
        ([DomainShare("a", 3, 1.0)], 0, "block and window are at least 1"),
    ],
)
def test_impossible_orders(shares: list[DomainShare], block: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Order(shares, 0, block, 4)


def test_partial_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="not a whole number of global batches of 8"):
        list(micro_batches(0, 12, 8, None, 0, 1))


@settings(max_examples=60)
@given(order=ORDERS, data=st.data())
def test_next_use_is_what_a_search_finds(order: Order, data: st.DataObject) -> None:
    """Any domain, stretch of samples and position, in any epoch."""
    domain = data.draw(st.integers(0, len(order.shares) - 1))
    start = data.draw(st.integers(0, order.shares[domain].size + 2))
    samples = range(start, start + data.draw(st.integers(0, 40)))
    position = data.draw(st.integers(0, 5_000))
    found = order.next_use(domain, samples, position)
    if start >= order.shares[domain].size or not samples:
        assert found is None  # never trained on
        return
    # Each sample comes once an epoch; a cycle has `quota` samples of the domain.
    cycles = 2 * order.shares[domain].size // order.quotas[domain] + 2
    for expected in range(position, position + cycles * sum(order.quotas)):
        address = order.locate(expected)
        if address.domain == domain and address.sample in samples:
            break
    assert found == expected


def test_next_use_in_huge_domains() -> None:
    order = Order([DomainShare("a", 10**12, 1.0), DomainShare("b", 3, 1.0)], 0, 16, 8)
    for position in range(10**15, 10**15 + 50):
        domain, _, sample, _ = order.locate(position)
        assert order.next_use(domain, range(sample, sample + 1), position) == position

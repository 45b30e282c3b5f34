"""Which sample is at which position: a pure function, so that a position is the whole data state.

A run sees positions 0, 1, 2, …; global batch ``s`` of G images is positions ``[sG, (s+1)G)``, of which
each rank takes a contiguous slice. ``Order.locate`` maps a position to (domain, epoch, sample):

1. *Domain.* A fixed cycle of slots is shared out among domains in proportion to their weights
   (largest remainder) and spread evenly over the cycle. How often a domain came before a slot is a
   table, so position p is the j-th one of its domain, found without counting.
2. *Sample.* Number j of a domain with N samples is in epoch ``j // N``, at place ``j % N`` of that
   epoch's permutation: blocks of consecutive samples are permuted, then the samples within each
   window of blocks. Reads stay nearly sequential, and every sample comes once per epoch.

Permutations are keyed bijections evaluated at one point, so nothing here grows with the data set. They have
an inverse, so that ``Order.next_use`` tells when a sample comes again.

With ``data.rare_classes`` step 2 is another: number j of a domain chooses a class, then a sample that has it
(``rare_classes``). Samples of rare classes come often then, others seldom or never.
"""

from __future__ import annotations

import bisect
import functools
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from ppar_dist.config.data_section import MAX_SOURCES
from ppar_dist.data.rare_classes import RareClasses

_MASK = (1 << 64) - 1
_ROUNDS = 4  # pairs of half rounds; below, small permutations are visibly uneven
_CYCLE = MAX_SOURCES  # slots per cycle: shares of positions are multiples of 1/1024


@dataclass(frozen=True)
class DomainShare:
    """A domain's trainable samples (numbers 0..size-1) and its relative share of positions."""

    name: str
    size: int
    weight: float


class SampleAddress(NamedTuple):
    """Where a position points: domain number, its epoch (from 0), sample number within the domain."""

    domain: int
    epoch: int
    sample: int
    rare: int | None = None  # the class that the sample was drawn for


class Permutation:
    """A keyed bijection of 0..n-1, evaluated in O(1) either way without a table.

    A Feistel network over pairs (x, y) with ``x < a``, ``y < b``, ``n <= ab``; what falls outside
    0..n-1 is mapped again until it falls inside (on average less than once more).
    """

    def __init__(self, n: int, key: int) -> None:
        self.n = n
        self.a = math.isqrt(max(n - 1, 0)) + 1
        self.b = -(-n // self.a)
        self._keys = [_mix(key + 2 * number + 1) for number in range(2 * _ROUNDS)]

    def __call__(self, i: int) -> int:
        """The image of i."""
        while True:
            i = self._forward(i)
            if i < self.n:
                return i

    def inverse(self, i: int) -> int:
        """The number whose image is i."""
        while True:
            i = self._backward(i)
            if i < self.n:
                return i

    def _forward(self, i: int) -> int:
        x, y = divmod(i, self.b)
        keys = self._keys
        for number in range(0, 2 * _ROUNDS, 2):
            x = (x + _mix(y ^ keys[number])) % self.a
            y = (y + _mix(x ^ keys[number + 1])) % self.b
        return x * self.b + y

    def _backward(self, i: int) -> int:
        x, y = divmod(i, self.b)
        keys = self._keys
        for number in range(2 * _ROUNDS - 2, -1, -2):
            y = (y - _mix(x ^ keys[number + 1])) % self.b
            x = (x - _mix(y ^ keys[number])) % self.a
        return x * self.b + y


class Order:
    """The sequence of samples of a run.

    Args:
        shares: the source domains; weights need not sum to one.
        seed: any integer.
        block: consecutive samples that stay together.
        window: blocks among which samples are permuted.
        rare: of each domain, where samples are drawn for their rare classes.

    Raises:
        ValueError: no domains, an empty domain, or a number that is not positive.
    """

    def __init__(
        self,
        shares: Sequence[DomainShare],
        seed: int,
        block: int,
        window: int,
        rare: Sequence[RareClasses] | None = None,
    ) -> None:
        if not shares:
            raise ValueError("an order needs at least one domain, got none")
        assert len(shares) <= _CYCLE, "the configuration is refused with more sources"
        for share in shares:
            if share.size < 1 or not 0 < share.weight < math.inf:
                raise ValueError(f"domain {share.name} needs samples and a positive weight, got {share}")
        if block < 1 or window < 1:
            raise ValueError(f"block and window are at least 1, got {block} and {window}")
        self.shares = tuple(shares)
        self.seed, self.block, self.window = seed, block, window
        self.rare = rare
        self.quotas = _quotas([share.weight for share in shares], _CYCLE if len(shares) > 1 else 1)
        self._slots, self._before = _cycle(self.quotas, _key(seed, "cycle"))
        self._slots_of: list[list[int]] = [[] for _ in shares]
        for slot, domain in enumerate(self._slots):
            self._slots_of[domain].append(slot)

    def locate(self, position: int, attempt: int = 0) -> SampleAddress:
        """The sample at a position >= 0; O(1) in time and memory.

        ``attempt`` a > 0 is the a-th replacement of a bad sample: the sample a places further on in the
        sequence of the same domain.
        """
        cycle, slot = divmod(position, len(self._slots))
        domain = self._slots[slot]
        number = cycle * self.quotas[domain] + self._before[slot] + attempt
        share = self.shares[domain]
        if self.rare is not None:
            key = _key(self.seed, f"{share.name}/rare/{number}")
            sample, rare = self.rare[domain].draw(key, _mix(key))
            return SampleAddress(domain, number // share.size, sample, rare)
        epoch, place = divmod(number, share.size)
        return SampleAddress(domain, epoch, self._shuffle(domain, epoch).sample(place))

    def next_use(self, domain: int, samples: range, position: int) -> int | None:
        """The first position from ``position`` on at which one of a domain's samples is read (attempt 0).

        O(1) in the size of the domain, O(n) in the number of samples.

        Args:
            domain: its number.
            samples: consecutive sample numbers; those that are not trained on do not count.
            position: at least 0.

        Returns:
            A position; None where none of the samples is trained on, and with ``rare``, where only drawing
            tells.
        """
        size = self.shares[domain].size
        samples = range(samples.start, min(samples.stop, size))
        if self.rare is not None or not samples:
            return None
        slots = self._slots_of[domain]
        cycle, slot = divmod(position, len(self._slots))
        first = cycle * len(slots) + bisect.bisect_left(slots, slot)  # number of the domain's next sample
        epoch, place = divmod(first, size)
        found = self._shuffle(domain, epoch).first_place(samples, place)
        if found is None:  # all were read in this epoch: each comes in the next
            epoch += 1
            found = self._shuffle(domain, epoch).first_place(samples, 0)
        assert found is not None
        cycle, which = divmod(epoch * size + found, len(slots))
        return cycle * len(self._slots) + slots[which]

    def _shuffle(self, domain: int, epoch: int) -> _Shuffle:
        share = self.shares[domain]
        key = _key(self.seed, f"{share.name}/{epoch}")
        return _shuffle(share.size, self.block, self.window, key)


class _Shuffle:
    """The order of an epoch of ``n`` samples: which sample is at a place, and at which place a sample is.

    Slots hold blocks; all have ``block`` samples but the one slot that drew the last block, which is
    ``short`` samples shorter. Every window is ``window`` slots, the last one perhaps fewer.
    """

    def __init__(self, n: int, block: int, window: int, key: int) -> None:
        self._n, self._block, self._window, self._key = n, block, window, key
        blocks = -(-n // block)
        self._short = blocks * block - n
        self._order = Permutation(blocks, key)
        self._short_slot = self._order.inverse(blocks - 1)
        self._met = -1, (0, 0, self._order)  # the window met last, and what `_window_of` says of it

    def sample(self, place: int) -> int:
        """The sample at a place."""
        number = place // (self._window * self._block)
        if place >= self._first_place((number + 1) * self._window):
            number += 1  # the short slot came before: later windows begin earlier
        begin, _, within = self._window_of(number)
        shuffled = begin + within(place - begin)
        slot = shuffled // self._block
        if shuffled >= self._first_place(slot + 1):
            slot += 1
        return self._order(slot) * self._block + shuffled - self._first_place(slot)

    def first_place(self, samples: range, at_least: int) -> int | None:
        """The first place from ``at_least`` on with one of the samples; None where they come before."""
        slots = [
            (self._order.inverse(number), number)
            for number in range(samples.start // self._block, (samples.stop - 1) // self._block + 1)
        ]
        slots.sort()
        found: int | None = None
        for slot, number in slots:
            begin, end, within = self._window_of(slot // self._window)
            if found is not None and begin > found:  # places of a window come before those of the next
                break
            if end <= at_least:
                continue
            shuffled = self._first_place(slot) - begin - number * self._block  # of sample 0, were it here
            for sample in range(
                max(samples.start, number * self._block), min(samples.stop, (number + 1) * self._block)
            ):
                place = begin + within.inverse(shuffled + sample)
                if place >= at_least and (found is None or place < found):
                    found = place
        return found

    def _first_place(self, slot: int) -> int:
        return min(slot * self._block - (self._short if slot > self._short_slot else 0), self._n)

    def _window_of(self, number: int) -> tuple[int, int, Permutation]:
        """The first place of a window, that of the next one, and the order of what is between."""
        met, found = self._met
        if met != number:
            begin = self._first_place(number * self._window)
            end = self._first_place((number + 1) * self._window)
            found = begin, end, Permutation(end - begin, _mix(self._key ^ _mix(number + 1)))
            self._met = number, found  # at once: threads share this
        return found


_shuffle = functools.lru_cache(maxsize=64)(_Shuffle)  # positions of a stretch are in few epochs


def _quotas(weights: Sequence[float], cycle: int) -> list[int]:
    """Slots per domain: largest remainder, and at least one each."""
    exact = np.asarray(weights, dtype=np.float64)
    exact = exact / exact.sum() * cycle
    quotas = np.maximum(np.floor(exact), 1).astype(int)
    for domain in np.argsort(quotas - exact, kind="stable")[: max(cycle - int(quotas.sum()), 0)]:
        quotas[domain] += 1
    while quotas.sum() > cycle:  # tiny weights were rounded up to one slot; the largest give way
        quotas[int(np.argmax(quotas))] -= 1
    return [int(quota) for quota in quotas]


def _cycle(quotas: Sequence[int], key: int) -> tuple[list[int], list[int]]:
    """Domain of each slot, and how many slots of that domain came before it.

    The i-th of a domain's q slots falls at random into the i-th q-th part of the cycle: any stretch of
    the cycle holds the domains nearly in proportion.
    """
    rng = np.random.Generator(np.random.PCG64(key))
    when = np.concatenate([(np.arange(quota) + rng.random(quota)) / quota for quota in quotas])
    domains = np.repeat(np.arange(len(quotas)), quotas)[np.argsort(when, kind="stable")]
    before = np.empty_like(domains)
    for domain, quota in enumerate(quotas):
        before[domains == domain] = np.arange(quota)
    return domains.tolist(), before.tolist()


def _key(seed: int, purpose: str) -> int:
    """64 bits from seed and purpose, the same on every machine."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest(), "little")


def _mix(x: int) -> int:
    """SplitMix64's finaliser: 64 bits in, 64 well-mixed bits out."""
    x = (x + 0x9E3779B97F4A7C15) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return x ^ (x >> 31)

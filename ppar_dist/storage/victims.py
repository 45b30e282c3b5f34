"""Which units of a cache go next: the ones that a process has looked up once, and takes one after the other.

To look at all that is held takes long: 200 000 files, each with its next use. So a sample is ranked, and its
highest part is kept as a list. Whoever is on it is looked at again when its turn comes: what another process
has removed, or what is needed sooner by now, is passed over. Lists of several processes may overlap.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

from ppar_dist.storage.unit_file import Unit, disk_bytes

Rank = tuple[int, float]  # what has the highest goes first: (0, next use) or (1, -time of the last read)
LOWEST: Rank = (-1, 0.0)
_SAMPLE = 4096  # units ranked at a time, while other processes wait
_PART = 8  # of which one in so many is kept as a victim


class Choice(NamedTuple):
    """What goes, and whether that is enough; where it is not, nothing goes."""

    units: list[Unit]
    is_enough: bool
    refused: Rank | None = None  # of the one that is needed no later than what has no room


class Victims:
    """A list of units that may go.

    Args:
        rank: of a unit that is held, as of now; None where it is not held any more.
    """

    def __init__(self, rank: Callable[[Unit], Rank | None]) -> None:
        self._rank = rank
        self._ranked: list[tuple[Rank, Unit]] = []  # the last one goes first

    def forget(self) -> None:
        """Empty the list."""
        self._ranked = []

    def fill(self, held: Sequence[Unit], excess: int) -> None:
        """Begin the list again.

        Args:
            held: all units that are held.
            excess: bytes that it must suffice for, where it can.
        """
        self._ranked = []
        if excess <= 0 or not held:
            return
        most = max(_SAMPLE, -(-_PART * len(held) * excess // sum(map(disk_bytes, held))))
        if most < len(held):
            # Another one in each process: their lists overlap little.
            held = random.Random().sample(held, most)
        ranked = sorted((rank, each) for each in held if (rank := self._rank(each)) is not None)
        kept = freed = 0
        while kept < len(ranked) and (kept * _PART < len(ranked) or freed < excess):
            kept += 1
            freed += disk_bytes(ranked[-kept][1])
        self._ranked = ranked[len(ranked) - kept :]

    def choose(self, excess: int, limit: Rank = LOWEST) -> Choice:
        """Take off the list what goes.

        Args:
            excess: bytes that must be free by it.
            limit: only what has a higher rank goes.
        """
        ranked, freed = self._ranked, 0
        chosen: list[tuple[Rank, Unit]] = []
        while freed < excess and ranked:
            then, unit = ranked.pop()
            now = self._rank(unit)
            if now is None or now < then:
                continue
            if now <= limit:
                ranked += [(then, unit), *reversed(chosen)]
                return Choice([], False, now)
            chosen.append((then, unit))
            freed += disk_bytes(unit)
        if freed < excess:
            return Choice([], False)
        return Choice([unit for _, unit in chosen], True)

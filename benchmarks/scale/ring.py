"""A ring all-reduce, message by message: the independent check of `ring_s`.

Every rank holds a vector. It is cut into as many parts as there are ranks; in each of 2 (R - 1) steps every
rank sends one part to its right, which adds it (first pass) or takes it (second pass). A link sends one
message after the other; a message arrives a latency after its last byte was sent, and a rank sends a part on
as soon as it has it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ppar_dist.doctor.scale import Link, Machines


def links_of(machines: Machines) -> list[Link]:
    """The link from each rank to its right: to the network after the last rank of each machine."""
    ends = (number % machines.gpus == machines.gpus - 1 for number in range(machines.ranks))
    return [machines.network if end and machines.nodes > 1 else machines.inside for end in ends]


def all_reduce(
    vectors: Sequence[np.ndarray], links: Sequence[Link], value_bytes: int
) -> tuple[list[np.ndarray], float]:
    """What each rank holds at the end, and the seconds until the last one has it all.

    Args:
        vectors: of each rank; their length is a multiple of the number of ranks.
        links: from each rank to its right.
        value_bytes: of a value of a vector.
    """
    ranks = len(vectors)
    parts = [np.split(vector.astype(float), ranks) for vector in vectors]
    size = len(vectors[0]) // ranks * value_bytes
    has, free = [0.0] * ranks, [0.0] * ranks  # when a rank has what it sends next, and when its link is idle
    for step in range(2 * (ranks - 1)):
        adds = step < ranks - 1
        numbers = [(rank - step) % ranks for rank in range(ranks)]
        sent = [parts[rank][number].copy() for rank, number in enumerate(numbers)]
        arrives = [0.0] * ranks
        for rank, link in enumerate(links):
            free[rank] = max(has[rank], free[rank]) + size / link.bytes_per_s
            arrives[(rank + 1) % ranks] = free[rank] + link.latency_s
        for rank in range(ranks):
            left = (rank - 1) % ranks
            mine = parts[rank][numbers[left]]
            parts[rank][numbers[left]] = mine + sent[left] if adds else sent[left]
        has = arrives
    return [np.concatenate(each) for each in parts], max(has)

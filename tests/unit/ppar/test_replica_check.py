"""Checksums of all ranks, held against each other by one sum."""

from __future__ import annotations

import pytest
import torch

from ppar_dist.ppar.diagnostics import Detail
from ppar_dist.ppar.replica_check import ReplicaCheck
from ppar_dist.ppar.sync import SyncBuffer


def detail(checksum: int) -> Detail:
    return Detail(0.0, [], [], [], checksum)


def broken(checksums: list[int]) -> list[bool]:
    """What each rank finds, their pieces summed in float32 as the step's buffer is."""
    ranks = [ReplicaCheck(len(checksums)) for _ in checksums]
    flat = torch.zeros(len(ReplicaCheck.NAMES), dtype=SyncBuffer({}).flat.dtype)
    for rank, checksum in zip(ranks, checksums, strict=True):
        rank.note(detail(checksum))
        flat += torch.tensor([rank.tell()[name] for name in ReplicaCheck.NAMES])
    return [rank.is_broken(dict(zip(ReplicaCheck.NAMES, flat.tolist(), strict=True))) for rank in ranks]


@pytest.mark.parametrize("checksum", [0, 1, 0x80000000, 0xFFFFFFFF, 0x12345678])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_equal_checksums_agree(checksum: int, ranks: int) -> None:
    assert broken([checksum] * ranks) == [False] * ranks


@pytest.mark.parametrize("bit", range(32))
def test_any_bit_of_one_rank_is_seen_by_all(bit: int) -> None:
    assert broken([0x9E3779B9] * 2 + [0x9E3779B9 ^ (1 << bit)]) == [True] * 3


def test_thousands_of_ranks_sum_exactly() -> None:
    ranks, agreement = 8192, ReplicaCheck(8192)
    agreement.note(detail(0xFFFFFFFF))
    told = torch.tensor(list(agreement.tell().values()), dtype=torch.float32)
    total = torch.zeros(3, dtype=torch.float32)
    for _ in range(ranks):
        total += told
    sums = dict(zip(ReplicaCheck.NAMES, total.tolist(), strict=True))
    off = sums | {ReplicaCheck.NAMES[0]: sums[ReplicaCheck.NAMES[0]] - 1}
    assert not agreement.is_broken(sums)
    agreement.note(detail(0xFFFFFFFF))
    assert agreement.is_broken(off)


def test_it_is_told_once_and_taken_out_of_the_figures() -> None:
    agreement = ReplicaCheck(1)
    assert agreement.tell() == {}
    sums = {"stop": 1.0, **dict.fromkeys(ReplicaCheck.NAMES, 0.0)}
    assert not agreement.is_broken(sums)
    agreement.note(None)  # a step without details
    assert agreement.tell() == {}
    agreement.note(detail(5))
    sums |= agreement.tell()
    assert not agreement.is_broken(sums)
    assert sums == {"stop": 1.0}
    assert agreement.tell() == {}

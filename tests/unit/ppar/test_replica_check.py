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
    sums = torch.zeros(ReplicaCheck.PIECES, dtype=SyncBuffer({}).flat.dtype)
    for rank, checksum in zip(ranks, checksums, strict=True):
        rank.note(detail(checksum))
        sums += rank.tell()
    return [rank.is_broken(sums) for rank in ranks]


@pytest.mark.parametrize("checksum", [0, 1, 0x80000000, 0xFFFFFFFF, 0x12345678])
@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_equal_checksums_agree(checksum: int, ranks: int) -> None:
    assert broken([checksum] * ranks) == [False] * ranks


@pytest.mark.parametrize("bit", range(32))
def test_any_bit_of_one_rank_is_seen_by_all(bit: int) -> None:
    assert broken([0x9E3779B9] * 2 + [0x9E3779B9 ^ (1 << bit)]) == [True] * 3


def test_thousands_of_ranks_sum_exactly() -> None:
    check = ReplicaCheck(8192)
    check.note(detail(0xFFFFFFFF))
    sums = torch.zeros(ReplicaCheck.PIECES, dtype=torch.float32)
    for _ in range(8192):
        sums += check.tell()
    assert not check.is_broken(sums)
    assert check.is_broken(sums - torch.tensor([1.0, 0.0, 0.0]))


def test_it_is_told_once_and_asking_changes_nothing() -> None:
    check, nothing = ReplicaCheck(1), torch.zeros(ReplicaCheck.PIECES)
    assert torch.equal(check.tell(), nothing)
    assert not check.is_broken(nothing)
    check.note(detail(5))
    told = check.tell()
    for _ in range(2):
        assert not check.is_broken(told)
        assert check.is_broken(told + 1)
    check.note(None)  # a step without details
    assert torch.equal(check.tell(), nothing)
    assert not check.is_broken(told)

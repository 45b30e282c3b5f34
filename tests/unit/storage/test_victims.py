"""The list of what goes next: the last needed, and never what is gone or needed sooner by now."""

from __future__ import annotations

import random

import pytest

from ppar_dist.storage.unit_file import Unit, disk_bytes
from ppar_dist.storage.victims import Choice, Rank, Victims

ROOM = disk_bytes(Unit("a", 0, 0, 100))


def unit(number: int) -> Unit:
    return Unit("a", 0, number * 100, number * 100 + 100)


def listed(ranks: dict[Unit, Rank], excess: int = 1) -> Victims:
    victims = Victims(ranks.get)
    victims.fill(list(ranks), excess)
    return victims


def test_a_large_folder_is_ranked_in_part() -> None:
    asked: list[Unit] = []
    order = random.Random(0).sample(range(100_000), 100_000)
    ranks: dict[Unit, Rank] = {unit(number): (0, float(order[number])) for number in range(100_000)}

    def rank(of: Unit) -> Rank:
        asked.append(of)
        return ranks[of]

    victims = Victims(rank)
    victims.fill(list(ranks), ROOM)
    assert len(set(asked)) == len(asked) == 4096
    gone = victims.choose(256 * ROOM).units
    assert len(gone) == 256
    positions = [ranks[each][1] for each in gone]
    assert positions == sorted(positions, reverse=True)
    assert min(positions) > 85_000, "all are of the last sixteenth, give or take"


def test_what_is_gone_or_needed_sooner_by_now_is_passed_over() -> None:
    ranks: dict[Unit, Rank] = {unit(number): (0, float(number)) for number in range(80)}
    victims = listed(ranks)
    del ranks[unit(79)]
    ranks[unit(78)] = 0, 1.0
    ranks[unit(77)] = 0, 1000.0
    assert victims.choose(2 * ROOM) == Choice([unit(77), unit(76)], True)


def test_where_one_is_needed_too_soon_all_stay_on_the_list() -> None:
    ranks: dict[Unit, Rank] = {unit(number): (0, float(number)) for number in range(8 * 4)}
    victims = listed(ranks)
    assert victims.choose(3 * ROOM, (0, 30.0)) == Choice([], False, (0, 30.0))
    assert victims.choose(3 * ROOM, (0, 28.0)) == Choice([unit(31), unit(30), unit(29)], True)
    assert victims.choose(2 * ROOM) == Choice([], False), "the list is used up"


@pytest.mark.parametrize("excess", [1, 9, 4095, 5000])
def test_the_list_suffices_for_what_it_is_made_for(excess: int) -> None:
    ranks: dict[Unit, Rank] = {unit(number): (1, float(number)) for number in range(5000)}
    choice = listed(ranks, excess * ROOM).choose(excess * ROOM)
    assert choice.is_enough
    assert len(choice.units) == excess

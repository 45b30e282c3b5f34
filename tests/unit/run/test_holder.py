"""Whether another job is dead: a decision from known facts, without a clock of its own."""

from __future__ import annotations

import pytest

from ppar_dist.processes.proc import Process
from ppar_dist.run.holder import Verdict, judge

LIMIT_S = 60.0
DEAD, ALIVE, UNCLEAR = Verdict.DEAD, Verdict.ALIVE, Verdict.UNCLEAR
HERE, STOPPED, GONE, ELSEWHERE = Process.ALIVE, Process.STOPPED, Process.GONE, Process.UNKNOWN


@pytest.mark.parametrize(
    ("process", "waited_s", "unchanged_s", "expected"),
    [
        (GONE, 0.0, 0.0, DEAD),  # at the first look
        (GONE, 90.0, 1.0, DEAD),  # whoever writes the file
        (HERE, 0.0, 0.0, UNCLEAR),
        (HERE, 60.0, 60.0, UNCLEAR),  # it may be ending
        (HERE, 60.1, 60.1, ALIVE),
        (STOPPED, 60.1, 60.1, ALIVE),
        (ELSEWHERE, 60.0, 60.0, UNCLEAR),
        (ELSEWHERE, 60.1, 60.1, DEAD),  # never changed
        (ELSEWHERE, 60.1, 29.9, ALIVE),  # it beats
        (ELSEWHERE, 60.1, 30.1, UNCLEAR),  # it beat at first, and then no more
        (ELSEWHERE, 89.0, 59.9, UNCLEAR),
        (ELSEWHERE, 90.1, 60.1, DEAD),
    ],
)
def test_the_verdict(process: Process, waited_s: float, unchanged_s: float, expected: Verdict) -> None:
    assert judge(process, waited_s, unchanged_s, LIMIT_S) is expected


@pytest.mark.parametrize("last_beat_s", range(60))
def test_one_that_dies_in_the_first_half_of_the_wait_is_dead_within_one_and_a_half(last_beat_s: int) -> None:
    """One that beats later than that is given up on: it lives, as far as can be seen."""
    looks = (number / 2 for number in range(1000))
    verdicts = ((now, judge(ELSEWHERE, now, now - min(now, last_beat_s), LIMIT_S)) for now in looks)
    decided_s, verdict = next((now, verdict) for now, verdict in verdicts if verdict is not UNCLEAR)
    assert verdict is (DEAD if last_beat_s <= LIMIT_S / 2 else ALIVE)
    assert decided_s <= 1.5 * LIMIT_S + 0.5

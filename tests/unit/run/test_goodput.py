"""Goodput against seconds that are known by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ppar_dist.files.jsonl import records
from ppar_dist.run.goodput import TimeLog, read_goodput, tally

START = 1_790_000_000.0


def record(at: float, step: int, seconds: float) -> dict[str, Any]:
    return {"time": START + at, "step": step, "seconds": seconds}


def write(path: Path, found: list[dict[str, Any]], end: str = "") -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in found) + end)
    return path


# Checkpoints at 20 and 40. The first process is killed after 50 logged steps and some more, the second rolls
# back from 55 to 40, stops at 60, and after a pause a third one does the rest.
CRASHED = [
    record(0, 0, 0.0),
    record(30, 10, 10.0),  # 20 s of start, then a step a second
    record(41, 20, 10.0),
    record(42, 20, 0.0),  # of the checkpoint
    record(52, 30, 10.0),
    record(63, 40, 10.0),
    record(74, 50, 10.0),  # lost by the kill
]
ROLLED_BACK = [
    record(100, 40, 0.0),
    record(120, 50, 12.0),  # lost by the rollback, as are the five steps after it
    record(126, 55, 6.0),
    record(128, 40, 0.0),
    record(140, 50, 11.0),
    record(152, 60, 11.0),
]
PAUSED = [record(1000, 60, 0.0), record(1040, 80, 30.0), record(1045, 100, 5.0)]


@pytest.mark.parametrize(
    ("found", "trained", "lost", "wall"),
    [
        (CRASHED[:4], 20, 0, 42),
        (CRASHED, 50, 0, 74),
        ([*CRASHED, *ROLLED_BACK[:1]], 40, 10, 100),
        ([*CRASHED, *ROLLED_BACK[:3]], 58, 10, 126),
        ([*CRASHED, *ROLLED_BACK], 40 + 22, 10 + 18, 152),
        ([*CRASHED, *ROLLED_BACK, *PAUSED], 40 + 22 + 35, 28, 1045),
        ([*CRASHED, record(200, 0, 0.0), record(210, 5, 4.0)], 4, 50, 210),  # no checkpoint was whole
    ],
)
def test_steps_that_were_lost_do_not_count(
    found: list[dict[str, Any]], trained: float, lost: float, wall: float
) -> None:
    total = tally(found)
    assert total is not None
    assert (total.trained_s, total.lost_s, total.wall_s()) == pytest.approx((trained, lost, wall))
    assert total.ratio() == pytest.approx(trained / wall)
    assert total.ratio(START + 2 * wall) == pytest.approx(trained / wall / 2)


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [
        {"time": "noon", "step": 5, "seconds": 1.0},
        {"time": START, "step": -5, "seconds": 1.0},
        {"time": START, "step": 5, "seconds": -1.0},
        {"time": START, "step": 5, "seconds": 1e300},
        {"time": True, "step": 5, "seconds": 1.0},
        {"step": 5},
    ]
    path = write(tmp_path / "time.jsonl", [*bad, *CRASHED, *bad], "[1]\nnot JSON\n{'time': 17")
    found = read_goodput(path)
    assert found is not None
    assert found.facts() == {"ratio": round(50 / 74, 4), "training_s": 50.0, "lost_s": 0.0, "wall_s": 74.0}
    assert found.sentence() == "goodput 67.6 %: 0:00:50 of training in 0:01:14 since the first start"
    assert read_goodput(write(tmp_path / "bad.jsonl", bad)) is None
    assert read_goodput(tmp_path / "none.jsonl") is None
    (tmp_path / "folder").mkdir()
    assert read_goodput(tmp_path / "folder") is None


def test_a_clock_that_was_set_back_gives_no_figure() -> None:
    total = tally([record(0, 0, 0.0), record(-50, 10, 10.0)])
    assert total is not None
    assert (total.ratio(), total.sentence()) == (None, "")
    assert total.ratio(START + 4) == 1.0  # never more than all


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


def test_two_attempts_write_what_is_read(tmp_path: Path) -> None:
    """Seven steps of 2 s each in 20 s, of which a rollback loses two; then a kill in the middle of a line."""
    path, now = tmp_path / "metrics" / "time.jsonl", Clock()
    first = TimeLog(path, START - 6, 0, now)
    for step in range(1, 8):
        now.now += 2
        first.add(step, 2.0)
        if step == 5:
            first.mark()
    assert first.ratio() == pytest.approx(14 / 20)  # the last two are in no record yet
    first.go_back(5)
    assert first.ratio() == pytest.approx(10 / 20)
    with path.open("a") as file:
        file.write('{"time": 1790')
    now.now += 80
    second = TimeLog(path, now.now - 4, 5, now)
    second.add(6, 3.0)
    second.close()
    expected = {"ratio": 0.13, "training_s": 13.0, "lost_s": 4.0, "wall_s": 100.0}
    found = read_goodput(path)
    assert found is not None
    assert found.facts() == second.total.facts() == expected
    assert [None if each is None else each["step"] for each in records(path)] == [0, 5, 7, 5, None, 5, 6]


def test_a_file_that_is_deleted_begins_with_the_start_again(tmp_path: Path) -> None:
    path, now = tmp_path / "time.jsonl", Clock()
    log = TimeLog(path, START - 10, 0, now)
    log.add(1, 5.0)
    path.unlink()
    log.close()
    found = read_goodput(path)
    assert found is not None
    assert (found.began, found.trained_s) == (START - 10, 5.0)

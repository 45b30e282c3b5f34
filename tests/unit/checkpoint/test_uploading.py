"""The thread that copies checkpoints: the newest first, then what had to wait and is kept."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from ppar_dist import checkpoint
from ppar_dist.checkpoint import CheckpointError, Snapshot, Uploader

WAIT_S = 20.0


class Place:
    """A slow remote that keeps all: copies wait at a gate, and may fail."""

    def __init__(self, run: Path) -> None:
        self.run, self.there, self.order = run, set[int](), list[int]()
        self.gates = {step: threading.Event() for step in range(10, 70, 10)}
        self.reached = {step: threading.Event() for step in self.gates}
        self.failures: dict[int, Exception] = {}

    def copy(self, folder: Path) -> int:
        step = checkpoint.step_of(folder) or 0
        self.reached[step].set()
        assert self.gates[step].wait(WAIT_S)
        if failure := self.failures.pop(step, None):
            raise failure
        self.there.add(step)
        self.order.append(step)
        return step

    add = copy

    def lacking(self, folder: Path) -> list[Path]:
        found = [each for each in checkpoint.list_checkpoints(self.run) if each < folder]
        return [each for each in reversed(found) if checkpoint.step_of(each) not in self.there]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def write(run: Path, step: int) -> Path:
    return checkpoint.publish(run, Snapshot(step, {}, {"state.json": "{}"}, {}))


def busy(place: Place, *waiting: int) -> Uploader:
    """An uploader at work on step 10, with others waiting."""
    uploader = Uploader()
    uploader.offer(write(place.run, 10), place)
    assert place.reached[10].wait(WAIT_S)
    for step in waiting:
        uploader.offer(write(place.run, step), place)
    return uploader


def opened(place: Place, *steps: int) -> None:
    for step in steps or place.gates:
        place.gates[step].set()


def outcomes(uploader: Uploader) -> list[tuple[int, bool, bool]]:
    """Step, whether it failed, and whether it was an earlier one."""
    uploader.wait(longest_s=WAIT_S)
    found = []
    while (outcome := uploader.poll()) is not None:
        found.append((outcome.step, outcome.error is not None, outcome.is_earlier))
    return found


def test_those_that_waited_follow_the_newest(place: Place) -> None:
    uploader = busy(place, 20, 30, 40)
    opened(place)
    assert outcomes(uploader) == [(10, 0, 0), (40, 0, 0), (30, 0, 1), (20, 0, 1)]


def test_one_that_is_published_meanwhile_goes_first(place: Place) -> None:
    uploader = busy(place, 20, 30, 40)
    opened(place, 10, 40)
    assert place.reached[30].wait(WAIT_S)
    uploader.offer(write(place.run, 50), place)
    opened(place)
    outcomes(uploader)
    assert place.order == [10, 40, 30, 50, 20]


def test_one_that_is_deleted_meanwhile_is_skipped(place: Place) -> None:
    uploader = busy(place, 20, 30, 40)
    opened(place, 10, 40)
    assert place.reached[30].wait(WAIT_S)
    checkpoint.discard(checkpoint.checkpoints_dir(place.run) / "step-00000020")
    opened(place)
    assert outcomes(uploader) == [(10, 0, 0), (40, 0, 0), (30, 0, 1)]


def test_one_that_a_rollback_takes_while_it_is_sent_is_no_failure(place: Place) -> None:
    uploader = busy(place, 20, 30)
    place.failures[20] = FileNotFoundError("model.safetensors")
    opened(place, 10, 30)
    assert place.reached[20].wait(WAIT_S)
    checkpoint.withdraw(checkpoint.checkpoints_dir(place.run) / "step-00000020")
    opened(place)
    assert outcomes(uploader) == [(10, 0, 0), (30, 0, 0)]


@pytest.mark.parametrize(
    ("failure", "later"),
    [
        (CheckpointError("damaged"), [(30, 1, 1), (20, 0, 1)]),
        (TimeoutError("no answer"), [(30, 1, 1)]),  # each of the others would wait as long
    ],
)
def test_after_a_failure_the_others_follow_unless_storage_failed(
    place: Place, failure: Exception, later: list[tuple[int, bool, bool]]
) -> None:
    uploader = busy(place, 20, 30, 40)
    place.failures[30] = failure
    opened(place)
    assert outcomes(uploader) == [(10, 0, 0), (40, 0, 0), *later]
    uploader.offer(write(place.run, 50), place)  # and its success tries again
    outcomes(uploader)
    assert place.there == {10, 20, 30, 40, 50}


def test_while_the_newest_does_not_arrive_no_earlier_one_is_sent(place: Place) -> None:
    uploader = busy(place, 20)
    place.failures |= {10: TimeoutError(), 20: TimeoutError()}
    opened(place)
    assert outcomes(uploader) == [(10, 1, 0), (20, 1, 0)]


def test_waiting_ends_after_its_longest(place: Place) -> None:
    uploader, seen = busy(place), list[int]()
    uploader.wait(lambda: seen.append(1), longest_s=0.5)
    assert seen
    assert not place.there
    opened(place)
    assert outcomes(uploader) == [(10, 0, 0)]

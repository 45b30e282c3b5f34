"""When a run's copies on object storage count as complete."""

from __future__ import annotations

from collections.abc import Callable, Set
from pathlib import Path
from typing import Any, cast

import pytest

from ppar_dist import checkpoint
from ppar_dist.checkpoint import CheckpointError, Snapshot
from ppar_dist.training.remote_copies import RemoteCopies


class Place:
    """A remote to which the copy of a step fails so many times."""

    place = "s3://bucket/run"

    def __init__(self, run: Path) -> None:
        self.run, self.there, self.failures = run, set[int](), dict[int, list[Exception]]()

    def destination(self, keep: Callable[[list[int]], Set[int]]) -> Place:
        return self

    def copy(self, folder: Path) -> int:
        step = checkpoint.step_of(folder) or 0
        if failures := self.failures.get(step):
            raise failures.pop()
        self.there.add(step)
        return 1

    add = copy

    def lacking(self, folder: Path) -> list[Path]:
        found = [each for each in checkpoint.list_checkpoints(self.run) if each < folder]
        return [each for each in reversed(found) if checkpoint.step_of(each) not in self.there]


class Log:
    """Takes outcomes; they are not looked at."""

    def uploaded(self, outcome: object, newest: int | None) -> None:
        pass


@pytest.fixture
def place(tmp_path: Path) -> Place:
    for step in (10, 20, 30):
        checkpoint.publish(tmp_path, Snapshot(step, {}, {"state.json": "{}"}, {}))
    return Place(tmp_path)


def finished(place: Place) -> str | None:
    """What the remote lacks at the end of a job whose checkpoints all waited but the newest."""
    copies = RemoteCopies(cast(Any, place), cast(Any, Log()))
    newest = checkpoint.list_checkpoints(place.run)[-1]
    copies.offer(newest, set)
    return copies.finish(newest, set, lambda: None)


@pytest.mark.parametrize("step", [10, 20, 30])
def test_a_copy_that_fails_once_is_tried_again_whichever_it_is(place: Place, step: int) -> None:
    place.failures[step] = [CheckpointError("another size")]
    assert finished(place) is None
    assert place.there == {10, 20, 30}


@pytest.mark.parametrize(("step", "lacks"), [(10, "all checkpoints"), (20, "all checkpoints"), (30, "last")])
def test_a_copy_that_fails_twice_is_lacking_whichever_it_is(place: Place, step: int, lacks: str) -> None:
    place.failures[step] = [CheckpointError("another size")] * 2
    assert f"does not have {'the ' * (step == 30)}{lacks}" in (finished(place) or "")
    assert place.there >= {10, 20} - {step} if step < 30 else not place.there

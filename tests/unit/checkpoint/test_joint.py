"""Checkpoints that several ranks write together, and files that a checkpoint shares with the one before."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ppar_dist import checkpoint
from ppar_dist.checkpoint import (
    FROZEN,
    MOMENTS,
    CheckpointError,
    CollectiveSave,
    JointSave,
    Outcome,
    Snapshot,
    Writer,
    moments_name,
    read_model,
    read_moments,
)

RANKS = 3


class Board:
    """What ranks say, in threads of one process."""

    def __init__(self, rank: int, said: dict[int, str]) -> None:
        self.rank, self.said = rank, said

    def post(self, text: str) -> None:
        self.said[self.rank] = text

    def read(self, of: Iterable[int]) -> dict[int, str]:
        return {rank: self.said[rank] for rank in of if rank in self.said}


def whole_moments() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    found = {f"{key}.wide": torch.randn(7, 11, generator=generator) for key in MOMENTS}
    found |= {f"{key}.bias": torch.randn(5, generator=generator) for key in MOMENTS}
    return found | {"step.wide": torch.tensor(4.0), "step.bias": torch.tensor(4.0)}


def part(rank: int) -> dict[str, torch.Tensor]:
    """Rank 0 has values 0 to 29 of ``wide``, rank 1 the rest, rank 2 ``bias``."""
    moments = whole_moments()
    if rank == 2:
        return {name: value for name, value in moments.items() if name.endswith("bias")}
    cut = slice(0, 30) if rank == 0 else slice(30, 77)
    found = {f"{key}.wide": moments[f"{key}.wide"].flatten()[cut].clone() for key in MOMENTS}
    place = {"start.wide": torch.tensor(cut.start), "shape.wide": torch.tensor([7, 11])}
    return found | place | {"step.wide": torch.tensor(4.0)}


def snapshot(rank: int, step: int = 10, ranks: int = RANKS) -> Snapshot:
    tensors = {moments_name(rank, ranks): part(rank)}
    if rank:
        return Snapshot(step, tensors, {}, {})
    model = {"model.safetensors": {"weight": torch.ones(3)}}
    return Snapshot(step, model | tensors, {"state.json": "{}"}, {})


def save(
    run: Path, said: dict[int, str], number: int = 1, limit_s: float = 30.0, silent: int | None = None
) -> list[Outcome | None]:
    """All ranks at once, each in a thread as ``Writer`` starts it; outcomes in rank order."""
    writers = [Writer(run) for _ in range(RANKS)]
    for rank in reversed(range(RANKS)):  # rank 0 last: the others wait for its folder
        if rank != silent:
            joint = JointSave(Board(rank, said), rank, RANKS, number, limit_s)  # type: ignore[arg-type]
            writers[rank].submit(snapshot(rank), joint=joint)
    return [writer.finish() for writer in writers]


def test_the_parts_of_all_ranks_are_the_whole(tmp_path: Path) -> None:
    first, *others = save(tmp_path, {})
    assert first is not None
    assert first.folder == checkpoint.find_checkpoint(tmp_path)
    assert [(each.folder, each.error) for each in others if each] == [(None, None)] * 2
    manifest = checkpoint.read_manifest(first.folder)
    assert {moments_name(rank, RANKS) for rank in range(RANKS)} < set(manifest["files"])
    assert first.bytes == sum(path.stat().st_size for path in first.folder.iterdir()) - (
        (first.folder / "manifest.json").stat().st_size
    )
    found, expected = read_moments(first.folder), whole_moments()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_missing_part_is_a_gap(tmp_path: Path) -> None:
    folder = checkpoint.publish(tmp_path, snapshot(0))
    with pytest.raises(ValueError, match="moments of wide: its parts hold 30 values, not 77"):
        read_moments(folder)


def test_what_keeps_one_rank_from_writing_is_what_rank_0_says(tmp_path: Path) -> None:
    said: dict[int, str] = {}
    writer, joints = Writer(tmp_path), [JointSave(Board(r, said), r, 2, 1, 30.0) for r in range(2)]  # type: ignore[arg-type]
    writer.submit(snapshot(0, ranks=2), joint=joints[0])
    bad = Snapshot(10, {"../optimizer": {"w": torch.ones(1)}}, {}, {})
    with pytest.raises(CheckpointError, match="this rank's part of checkpoint step-00000010 was not written"):
        checkpoint.publishing.write_part(tmp_path, bad, joints[1])
    outcome = writer.finish()
    assert outcome is not None
    assert outcome.error is not None
    assert "rank 1: ValueError: a snapshot holds files of distinct plain names" in outcome.error
    assert checkpoint.list_checkpoints(tmp_path) == []
    assert list((tmp_path / "checkpoints").iterdir()) == []


def test_rank_0_that_cannot_begin_lets_no_rank_wait(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where the folder would be")
    first, second, third = save(tmp_path, {})
    assert first is not None
    assert "was not written" in (first.error or "")
    for other in (second, third):
        assert other is not None
        assert "rank 0: " in (other.error or "")


def test_a_rank_that_does_not_come_is_named_and_the_next_save_works(tmp_path: Path) -> None:
    said: dict[int, str] = {}
    first, *_ = save(tmp_path, said, limit_s=0.3, silent=2)
    assert first is not None
    assert "rank 2 did not write its part in 0.3 s" in (first.error or "")
    first, *_ = save(tmp_path, said, number=2)
    assert first is not None
    assert first.error is None


def test_a_rank_that_comes_too_late_gives_up(tmp_path: Path) -> None:
    said: dict[int, str] = {}
    save(tmp_path, said, number=2)
    late = JointSave(Board(1, said), 1, RANKS, 1, 30.0)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="rank 0 has given up this checkpoint and writes a later one"):
        checkpoint.publishing.write_part(tmp_path, snapshot(1), late)


class Ranks:
    """Collectives of threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, said: list[Any]) -> None:
        self.rank, self.barrier, self.said = rank, barrier, said

    def gather(self, value: Any) -> list[Any]:
        self.said[self.rank] = value
        self.barrier.wait(30)
        found = list(self.said)
        self.barrier.wait(30)
        return found

    def broadcast(self, value: Any) -> Any:
        return self.gather(value)[0]


@pytest.mark.parametrize("fault", ["none", "rank 0 cannot begin", "rank 0 writes badly", "rank 1 does"])
def test_ranks_that_wait_for_each_other_all_come_through(tmp_path: Path, fault: str) -> None:
    barrier, said = threading.Barrier(RANKS), [None] * RANKS
    if fault == "rank 0 cannot begin":
        (tmp_path / "checkpoints").write_text("a file where the folder would be")
    writers = [Writer(tmp_path) for _ in range(RANKS)]
    for rank, writer in enumerate(writers):
        what = snapshot(rank)
        if fault in ("rank 0 writes badly", "rank 1 does") and rank == int("1" in fault):
            what = replace(what, tensors={"../x": {"w": torch.ones(1)}})
        writer.submit(what, joint=CollectiveSave(Ranks(rank, barrier, said)))  # type: ignore[arg-type]
    first, *others = [writer.finish() for writer in writers]
    assert first is not None
    if fault == "none":
        assert first.error is None
        assert read_moments(first.folder).keys() == whole_moments().keys()
        return
    assert "was not written" in (first.error or "")
    assert ("rank 1: ValueError" in (first.error or "")) == (fault == "rank 1 does")
    assert checkpoint.list_checkpoints(tmp_path) == []
    if fault == "rank 0 cannot begin":
        assert all(other is not None and "rank 0: " in (other.error or "") for other in others)


def with_tower(step: int, earlier: Path | None, made: list[int]) -> Snapshot:
    def give() -> dict[str, torch.Tensor]:
        made.append(step)
        return {"tower": torch.arange(1000.0)}

    base = Snapshot(step, {"model.safetensors": {"head": torch.ones(3)}}, {"state.json": "{}"}, {})
    return replace(base, constant={FROZEN: give}, same_in=earlier)


def test_what_stays_the_same_is_one_file_in_all_checkpoints(tmp_path: Path) -> None:
    made: list[int] = []
    first = checkpoint.publish(tmp_path, with_tower(10, None, made))
    second = checkpoint.publish(tmp_path, with_tower(20, first, made))
    third = checkpoint.publish(tmp_path, with_tower(30, second, made))
    assert made == [10]
    assert len({(folder / FROZEN).stat().st_ino for folder in (first, second, third)}) == 1
    entries = [checkpoint.read_manifest(folder)["files"][FROZEN] for folder in (first, third)]
    assert entries[1] == entries[0] | {"linked": True}
    assert checkpoint.retain(tmp_path, 1) == [first, second]
    assert checkpoint.verify(third) == []
    assert set(read_model(third)) == {"head", "tower"}
    assert torch.equal(read_model(third)["tower"], torch.arange(1000.0))


@pytest.mark.parametrize("damage", ["changed", "missing", "no links here"])
def test_where_it_cannot_be_linked_it_is_written(
    tmp_path: Path, damage: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[int] = []
    first = checkpoint.publish(tmp_path, with_tower(10, None, made))
    if damage == "changed":
        content = bytearray((first / FROZEN).read_bytes())
        content[-1] ^= 1
        (first / FROZEN).write_bytes(content)
    elif damage == "missing":
        (first / FROZEN).unlink()
    else:

        def refuse(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", refuse)
    with caplog.at_level(logging.INFO):
        second = checkpoint.publish(tmp_path, with_tower(20, first, made))
    assert made == [10, 20]
    assert checkpoint.verify(second) == []
    assert torch.equal(load_file(second / FROZEN)["tower"], torch.arange(1000.0))
    assert "is written" in caplog.text


def test_writers_of_many_saves_keep_their_order(tmp_path: Path) -> None:
    said: dict[int, str] = {}
    before = threading.active_count()
    for number in range(1, 4):
        outcomes = save(tmp_path, said, number)
        assert [each.error for each in outcomes if each] == [None] * RANKS
    assert threading.active_count() < before + 20

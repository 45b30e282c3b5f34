"""A run's folder: what is refused, and what a refusal leaves alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ppar_dist import checkpoint
from ppar_dist.config.identity import determining
from ppar_dist.config.load import load_config, parse_config
from ppar_dist.data.batches import batching
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.run.lock import RunLock
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.runfolder import RunFolder
from ppar_dist.training.trainer import noise_seed
from tests.ranks import tiny_config


@dataclass(frozen=True)
class Listening(World):
    """Notes what rank 0 tells the others."""

    told: list[Any] = field(default_factory=list)

    def broadcast(self, value: Any) -> Any:
        self.told.append(value)
        return value


_LOCKS: list[RunLock] = []  # each test's jobs come one after another


def folder(tmp_path: Path, world: World, **sections: dict[str, Any]) -> RunFolder:
    config = parse_config(tiny_config(tmp_path, tmp_path / "run", **sections))
    lock = RunLock(config.run.dir, 60.0)
    _LOCKS.append(lock)
    for ended in _LOCKS[:-1]:
        ended.close()
    return RunFolder(RunPlan(config, (), batching(config, 1)), world, lock)


def with_a_checkpoint(tmp_path: Path) -> Path:
    """A run that has a checkpoint."""
    run = folder(tmp_path, World())
    run.claim()
    run.record()
    checkpoint.publish(run.path, checkpoint.Snapshot(4, {}, {"state.json": "{}"}, {}))
    return run.path


def test_a_change_is_recorded_only_when_the_checkpoint_was_taken_up(tmp_path: Path) -> None:
    path = with_a_checkpoint(tmp_path)
    changed = folder(tmp_path, World(), optim={"lr": 0.5})
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        changed.claim()
    changed.claim(accept_changes=True)
    assert load_config(path / "config.yaml").optim.lr == 0.001
    changed.record()
    assert load_config(path / "config.yaml").optim.lr == 0.5


def test_a_run_that_lost_its_configuration_is_held_against_its_checkpoint(tmp_path: Path) -> None:
    run = folder(tmp_path, World())
    run.claim()
    facts = {"config": determining(run.plan.config)}
    checkpoint.publish(run.path, checkpoint.Snapshot(4, {}, {"state.json": "{}"}, facts))
    changed = folder(tmp_path, World(), optim={"lr": 0.5})
    changed.claim()
    with pytest.raises(UserError, match=r"another configuration: optim\.lr: 0\.001 -> 0\.5"):
        changed.resume(None)  # type: ignore[arg-type]  # refused before anything is restored


def test_an_unreadable_configuration_of_the_run_is_told_to_all_ranks(tmp_path: Path) -> None:
    path = with_a_checkpoint(tmp_path)
    (path / "config.yaml").write_text("run: {dir: x}\nnonsense: 1\n")
    world = Listening()
    run = folder(tmp_path, world)
    with pytest.raises(UserError, match=r"unknown key nonsense.*Give another run\.dir, or --accept"):
        run.claim()
    assert len(world.told) == 1
    run.claim(accept_changes=True)


def test_noise_differs_between_ranks_and_steps_and_repeats() -> None:
    seeds = {noise_seed(seed, step, rank) for seed in range(3) for step in range(5) for rank in range(4)}
    assert len(seeds) == 60
    assert noise_seed(1, 2, 3) == noise_seed(1, 2, 3)


def test_a_run_without_a_whole_checkpoint_does_not_begin_anew_unasked(tmp_path: Path) -> None:
    path = with_a_checkpoint(tmp_path)
    (state,) = path.glob("checkpoints/step-*/state.json")
    state.write_text("{} ")
    run = folder(tmp_path, World())
    with pytest.raises(
        UserError, match=r"none of the 1 checkpoints in .* is whole .*state\.json has 3 bytes"
    ):
        run.resume(None)  # type: ignore[arg-type]  # refused before anything is restored

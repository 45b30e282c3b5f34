"""The claim to a run's folder: refusals, and the files that they leave unchanged."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ppar_dist import checkpoint
from ppar_dist.class_sets import class_set
from ppar_dist.config.identity import determining
from ppar_dist.config.load import load_config, parse_config
from ppar_dist.config.schema import Config
from ppar_dist.data.batches import batching
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.lock import RunLock
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.resume import resume
from tests.ranks import tiny_config


@dataclass(frozen=True)
class Listening(World):
    """Records what rank 0 sends to the others."""

    told: list[Any] = field(default_factory=list)

    def broadcast(self, value: Any) -> Any:
        self.told.append(value)
        return value


CLASSES = class_set("roads6")
_LOCKS: list[RunLock] = []  # each test's jobs come one after another


def config_of(tmp_path: Path, **sections: dict[str, Any]) -> Config:
    return parse_config(tiny_config(tmp_path, tmp_path / "run", **sections))


def claim_of(config: Config, world: World) -> RunClaim:
    """A job's claim to a run's folder; the job before has ended."""
    lock = RunLock(config.run.dir, 60.0)
    _LOCKS.append(lock)
    for ended in _LOCKS[:-1]:
        ended.close()
    return RunClaim(config, world, lock, CLASSES)


def resume_from(run: RunClaim, config: Config) -> Path | None:
    """Nothing is restored: the tests below are about what is refused before that."""
    plan = RunPlan(config, (), batching(config, 1), CLASSES)
    return resume(None, plan, World(), run)  # type: ignore[arg-type]


def with_a_checkpoint(config: Config) -> Path:
    """A run that has a checkpoint."""
    run = claim_of(config, World())
    run.claim()
    run.record()
    checkpoint.publish(run.path, checkpoint.Snapshot(4, {}, {"state.json": "{}"}, {}))
    return run.path


def test_a_change_is_recorded_only_when_the_run_has_resumed(tmp_path: Path) -> None:
    path = with_a_checkpoint(config_of(tmp_path))
    changed = claim_of(config_of(tmp_path, optim={"lr": 0.5}), World())
    with pytest.raises(UserError, match=r"optim\.lr: 0\.001 -> 0\.5"):
        changed.claim()
    changed.claim(accept_changes=True)
    assert load_config(path / "config.yaml").optim.lr == 0.001
    changed.record()
    assert load_config(path / "config.yaml").optim.lr == 0.5


def test_a_run_that_lost_its_configuration_is_compared_with_its_checkpoint(tmp_path: Path) -> None:
    config, changed = config_of(tmp_path), config_of(tmp_path, optim={"lr": 0.5})
    run = claim_of(config, World())
    run.claim()
    facts = {"config": determining(config)}
    checkpoint.publish(run.path, checkpoint.Snapshot(4, {}, {"state.json": "{}"}, facts))
    run = claim_of(changed, World())
    run.claim()
    with pytest.raises(UserError, match=r"another configuration: optim\.lr: 0\.001 -> 0\.5"):
        resume_from(run, changed)


def test_an_unreadable_configuration_of_the_run_is_told_to_all_ranks(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    path = with_a_checkpoint(config)
    (path / "config.yaml").write_text("run: {dir: x}\nnonsense: 1\n")
    world = Listening()
    run = claim_of(config, world)
    with pytest.raises(UserError, match=r"unknown key nonsense.*Give another run\.dir, or --accept"):
        run.claim()
    assert len(world.told) == 1
    run.claim(accept_changes=True)


def test_a_job_that_waits_for_the_folder_shows_that_it_lives(tmp_path: Path) -> None:
    """Otherwise a watchdog with a limit shorter than the wait would end the job."""
    config = config_of(tmp_path)
    config.run.dir.mkdir()
    (config.run.dir / "run.lock").write_text("not a lock")
    lock, calls = RunLock(config.run.dir, 0.5), []
    with closing(lock):
        RunClaim(config, World(), lock, CLASSES).claim(alive=lambda: calls.append(time.monotonic()))
    assert len(calls) > 1


def test_a_run_without_a_whole_checkpoint_does_not_start_over_unasked(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    path = with_a_checkpoint(config)
    (state,) = path.glob("checkpoints/step-*/state.json")
    state.write_text("{} ")
    run = claim_of(config, World())
    with pytest.raises(
        UserError, match=r"none of the 1 checkpoints in .* is whole .*state\.json has 3 bytes"
    ):
        resume_from(run, config)

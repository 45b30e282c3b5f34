"""Runs that are killed again and again: the ledger proves that every sample had its turn once, in order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.faults.kills import GLOBAL_BATCH, history, tensors
from benchmarks.faults.siege import Siege, Stand, besiege
from ppar_dist.run.audit import audit
from tests.distributed.test_equivalence import Run
from tests.faults.jobs import tiny_run
from tests.faults.test_elastic import assert_equal_up_to_rounding
from tests.ranks import run_ranks
from tests.sabotage.pace import Pace

KILLS = int(os.environ.get("PPAR_LEDGER_KILLS", "3"))
EVERY = 6
STEPS = max(30, EVERY * KILLS)
SECTIONS: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "log_every": 1, "ledger": True},
    "checkpoint": {"every": EVERY},
    "faults": {"peer_s": 20.0, "stall_s": 600.0},  # a rank whose process is gone is known at once
}
SAME = (2, 2)  # ranks and ZeRO stage


@pytest.fixture(scope="module")
def undisturbed(blocks: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run, config = tiny_run(
        blocks, tmp_path_factory.mktemp("whole"), **SECTIONS, engine={"zero_stage": SAME[1]}
    )
    run_ranks(["train", config], SAME[0])
    return run


def killed(blocks: Path, folder: Path, same: tuple[int, int] | None) -> tuple[Path, Siege]:
    """Besieged, and not at its end before it was killed often enough."""
    run, config = tiny_run(blocks, folder, **SECTIONS)
    hold = Pace(folder / "hold", STEPS - 2 * KILLS)  # ranks whose launcher is killed do a step, and stop
    stand = Stand(("tests.sabotage", hold.hold), hold.forget, hold.standing, hold.release)
    return run, besiege(Path(config), run, EVERY, KILLS, seed=0, same=same, stand=stand)


def assert_proven(run: Path, siege: Siege, other: Path) -> None:
    """The ledger is compared with the rule, and sample by sample with an undisturbed run."""
    assert siege.kills.total() == KILLS
    found = audit(run)
    assert found.problems == []
    assert (found.steps, found.positions) == (STEPS, STEPS * GLOBAL_BATCH)
    assert (found.changed_repeats, found.stepped_over) == (0, 0)
    seen = history(run)
    assert [position for position, _ in seen] == list(range(STEPS * GLOBAL_BATCH))
    assert seen == history(other)


def test_the_same_ranks_end_bit_by_bit_as_if_nothing_had_happened(
    undisturbed: Path, blocks: Path, tmp_path: Path
) -> None:
    run, siege = killed(blocks, tmp_path, SAME)
    assert_proven(run, siege, undisturbed)
    mine, theirs = tensors(run), tensors(undisturbed)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def test_other_ranks_and_stages_end_the_same_up_to_rounding(
    undisturbed: Path, blocks: Path, tmp_path: Path
) -> None:
    run, siege = killed(blocks, tmp_path, None)
    assert_proven(run, siege, undisturbed)
    assert len(set(siege.ranks)) > 1
    if STEPS <= 30:  # rounding grows with the steps; benchmarks.faults.kills measures it
        assert_equal_up_to_rounding(Run(undisturbed), Run(run))

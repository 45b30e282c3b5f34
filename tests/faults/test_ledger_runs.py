"""Runs that are killed again and again: the ledger proves that every sample had its turn once, in order."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from benchmarks.kills import GLOBAL_BATCH, history, tensors
from benchmarks.siege import Siege, besiege
from ppar_dist.ledger import audit
from tests.distributed.test_equivalence import Run
from tests.faults.jobs import job, ours, tiny_run
from tests.faults.test_elastic import assert_equal_up_to_rounding

KILLS = int(os.environ.get("PPAR_LEDGER_KILLS", "3"))
EVERY = 6
STEPS = max(30, EVERY * KILLS)
SECTIONS: dict[str, Any] = {
    "train": {"steps": STEPS, "global_batch": GLOBAL_BATCH, "log_every": 1, "ledger": True},
    "checkpoint": {"every": EVERY},
    "faults": {"peer_s": 5.0, "stall_s": 120.0},
}


def undisturbed(blocks: Path, folder: Path, ranks: int, stage: int) -> Path:
    run, config = tiny_run(blocks, folder, **SECTIONS, engine={"zero_stage": stage})
    with job(ours("train", config, "--nproc", str(ranks)), folder / "log") as started:
        assert started.wait() == 0, started.output
    return run


def killed(blocks: Path, folder: Path, same: tuple[int, int] | None) -> tuple[Path, Siege]:
    run, config = tiny_run(blocks, folder, **SECTIONS)
    return run, besiege(Path(config), run, EVERY, KILLS, seed=0, same=same)


def assert_proven(run: Path, siege: Siege, other: Path) -> None:
    """The ledger is held against the rule, and sample by sample against the run that nobody killed."""
    assert siege.kills.total() >= min(KILLS, 3)
    found = audit(run)
    assert found.problems == []
    assert (found.steps, found.positions) == (STEPS, STEPS * GLOBAL_BATCH)
    assert (found.changed_repeats, found.stepped_over) == (0, 0)
    seen = history(run)
    assert [position for position, _ in seen] == list(range(STEPS * GLOBAL_BATCH))
    assert seen == history(other)


def test_the_same_ranks_end_bit_by_bit_as_if_nothing_had_happened(blocks: Path, tmp_path: Path) -> None:
    other = undisturbed(blocks, tmp_path / "whole", 2, 2)
    run, siege = killed(blocks, tmp_path / "killed", (2, 2))
    assert_proven(run, siege, other)
    mine, theirs = tensors(run), tensors(other)
    assert mine.keys() == theirs.keys()
    assert [key for key in mine if not torch.equal(mine[key], theirs[key])] == []


def test_other_ranks_and_stages_end_the_same_up_to_rounding(blocks: Path, tmp_path: Path) -> None:
    other = undisturbed(blocks, tmp_path / "whole", 1, 0)
    run, siege = killed(blocks, tmp_path / "killed", None)
    assert_proven(run, siege, other)
    assert len(set(siege.ranks)) > 1
    if STEPS <= 30:  # rounding grows with the steps; benchmarks.kills measures it
        assert_equal_up_to_rounding(Run(other), Run(run))

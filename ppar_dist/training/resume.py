"""How a run resumes from the newest whole checkpoint, and when that is refused."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ppar_dist import checkpoint
from ppar_dist.distributed.world import World
from ppar_dist.errors import UserError
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.state import TrainState
from ppar_dist.text import one_line
from ppar_dist.training.learner import Learner
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.snapshot import restore

log = logging.getLogger(__name__)


def resume(
    learner: Learner, plan: RunPlan, world: World, claim: RunClaim, before: int | None = None
) -> Path | None:
    """Restore the newest whole checkpoint, if there is one. Collective.

    Args:
        learner: receives the state.
        plan: of the run.
        world: the ranks.
        claim: to the run's folder.
        before: only a checkpoint of this step or an earlier one.

    Returns:
        The checkpoint; None if there was none.

    Raises:
        UserError: the checkpoint's data or model is not this run's, or no checkpoint is whole though there
            are some.
    """
    run = claim.path
    found = world.on_main(lambda: _newest(run, before))
    if found is None:
        return None
    with checkpoint.reading(found):
        manifest = checkpoint.read_manifest(found)
        claim.refuse_unknown_change(manifest)
        _check_origin(manifest, plan)
        try:
            restore(learner, found, plan, world)
        except (RuntimeError, KeyError, ValueError, OSError) as error:
            if manifest["config_sha256"] == plan.facts()["config_sha256"]:
                raise
            raise UserError(
                f"{found} does not fit the changed configuration: {one_line(error)}. Give another run.dir"
            ) from None
    _forget_lost_best(learner.state, run, world)
    if world.is_main:
        _log_resumed(found, int(manifest["world_size"]), world.world_size, plan, learner.state)
    return found


def complete_steps(run: Path) -> list[int]:
    """Steps of the checkpoints that are there in full, rising."""
    folders = checkpoint.list_checkpoints(run)
    return [checkpoint.step_of(folder) or 0 for folder in folders if checkpoint.is_complete(folder)]


def _newest(run: Path, before: int | None) -> Path | None:
    """A run whose checkpoints are all damaged does not start over without being told to."""
    found = checkpoint.find_checkpoint(run, before)
    folders = checkpoint.list_checkpoints(run)
    if found is not None or before is not None or not folders:
        return found
    problems = "; ".join(f"{folder.name}: {checkpoint.verify(folder)[:1]}" for folder in folders[-3:])
    raise UserError(
        f"none of the {len(folders)} checkpoints in {run} is whole ({problems}); restore one, or give "
        "another run.dir to start over"
    )


def _check_origin(manifest: dict[str, Any], plan: RunPlan) -> None:
    facts, run = plan.facts(), plan.config.run.dir
    if manifest.get("text_sha256") != facts["text_sha256"]:
        raise UserError(
            f"text.file={plan.config.text.file} does not hold what {run} was trained with; "
            "restore the file, or give another run.dir"
        )
    noted = manifest["data"]
    changed = [name for name, fingerprint in facts["data"].items() if noted.get(name) != fingerprint]
    if changed:
        raise UserError(
            f"the data of {', '.join(changed)} is not what {run} was trained on; "
            "restore the shards, or give another run.dir"
        )


def _forget_lost_best(state: TrainState, run: Path, world: World) -> None:
    """A best checkpoint that is not there any more must not keep a later one from becoming it."""
    best = state.best_step
    if not world.on_main(lambda: best is None or best in complete_steps(run)):
        state.best_step = state.best_miou = None


def _log_resumed(found: Path, before: int, now: int, plan: RunPlan, state: TrainState) -> None:
    cut = plan.batching
    log.info("resumed from %s, the newest whole checkpoint: step %d", found, state.step)
    if before != now:
        log.info(
            "%d ranks instead of %d: global batch %d and learning rate stay, accumulation is now %d: "
            "%d ranks x %d micro-batches x %d",
            *(now, before, cut.global_batch, cut.accumulation, now, cut.accumulation, cut.micro_batch),
        )

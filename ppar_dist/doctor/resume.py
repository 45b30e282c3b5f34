"""The checkpoint that a job would resume from, and whether configuration and data are still the run's."""

from __future__ import annotations

from typing import Any

from ppar_dist.config.identity import changes_since, config_changes, content_hash
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, listing, ok, warning
from ppar_dist.errors import UserError
from ppar_dist.run import holder, paths
from ppar_dist.run.claim import stored_config
from ppar_dist.run.facts import CheckpointFacts, has_ended
from ppar_dist.text import duration


def start(case: ConfigCase) -> Finding:
    """The checkpoint that a job would resume from: the newest that verifies."""
    newest, damaged = case.newest, case.passed_over
    facts: dict[str, Any] = {
        "checkpoint": newest.path.name if newest else None,
        "passed_over": {item.path.name: item.problems for item in damaged},
    }
    why = "\n".join(f"{item.path.name} is passed over: {listing(item.problems, 3)}" for item in damaged)
    if newest is None:
        if damaged:
            return failure(
                f"no checkpoint can be used, and a job would refuse to begin at step 0 again\n{why}",
                "restore one from a copy, or give another run.dir",
                **facts,
            )
        return ok(f"no checkpoint in {case.config.run.dir}: starts at step 0", **facts)
    step, total = newest.step() or 0, case.config.train.steps
    left = max(0, total - step)
    facts |= {"step": step, "steps_left": left}
    text = f"{newest.path.name}: step {step:,} of {total:,}, {counted(left, 'step')} left; {_saved(newest)}"
    if damaged:
        return warning(
            f"{text}\n{why}", "check the storage; `ppar-dist inspect` shows the state of each file", **facts
        )
    if step >= total:
        return warning(f"{text}: nothing to train", "raise train.steps, or give another run.dir", **facts)
    if has_ended(newest, case.config):
        remedy = "raise train.stop_early.patience, or give another run.dir"
        return warning(f"{text}: it has stopped early, nothing to train", remedy, **facts)
    return ok(text, **facts)


def configuration(case: ConfigCase) -> Finding | None:
    """The run was started with a configuration that computes the same."""
    run = case.config.run.dir
    try:
        before = stored_config(run)
    except UserError as error:
        return failure(str(error), "give another run.dir, or `train --accept-changes` to replace it")
    noted = case.newest.manifest.get("config") if case.newest is not None else None
    if before is not None:
        changes, origin = config_changes(before, case.config), str(paths.config_file(run))
    elif case.newest is not None and isinstance(noted, dict):
        changes, origin = changes_since(noted, case.config), case.newest.path.name
    else:
        return None
    if not changes:
        return ok(f"computes the same as {origin}", changes=[])
    text = "\n".join(changes)
    if case.newest is None and not case.passed_over:
        return ok(f"differs from {origin}, which has no checkpoint yet:\n{text}", changes=changes)
    remedy = "give another run.dir, or `train --accept-changes` to continue with the new one"
    return failure(f"the run was started with another configuration:\n{text}", remedy, changes=changes)


def data(case: ConfigCase) -> Finding | None:
    """The sources are those that the checkpoint was trained on."""
    if case.newest is None or not case.sources:
        return None
    noted = case.newest.manifest.get("data")
    if not isinstance(noted, dict):
        return None  # a checkpoint that was not written by training
    now = {index.name: index.fingerprint for _, index in case.sources}
    changed = sorted(name for name, fingerprint in now.items() if noted.get(name) != fingerprint)
    if changed:
        return failure(
            f"{listing(changed)}: not what {case.newest.path.name} was trained on (fingerprint)",
            "restore the shards, or give another run.dir",
            changed=changed,
        )
    return ok(f"{counted(len(now), 'source')} as {case.newest.path.name} was trained on", changed=[])


def text(case: ConfigCase) -> Finding | None:
    """The text embeddings are those that the checkpoint was trained with."""
    if case.newest is None or "text_sha256" not in case.newest.manifest:
        return None
    try:
        now = content_hash(case.config.text.file)
    except UserError:
        return None  # the check of the text file says so
    if now != case.newest.manifest["text_sha256"]:
        return failure(
            f"text.file={case.config.text.file} does not hold what {case.newest.path.name} was trained with",
            "restore the file, or give another run.dir",
        )
    return ok(f"text embeddings as {case.newest.path.name} was trained with")


def position(case: ConfigCase) -> Finding | None:
    """The checkpoint is at a whole number of this configuration's global batches."""
    if case.newest is None or "samples_seen" not in case.newest.state:
        return None
    step, seen = case.newest.step() or 0, case.newest.state["samples_seen"]
    batch = case.config.train.global_batch
    over = case.newest.state.get("stepped_over", 0)  # by rollbacks
    facts = {"step": step, "samples_seen": seen, "stepped_over": over}
    taken = f"{seen} samples, {over} of them stepped over, in {counted(step, 'step')}"
    if seen - over != step * batch:
        return failure(
            f"{taken} are not a whole number of global batches of {batch}",
            "keep train.global_batch",
            **facts,
        )
    return ok(f"{counted(seen, 'sample')} seen; the next is at position {seen:,}", **facts)


def other_job(case: ConfigCase) -> Finding | None:
    """No other job holds the run's folder."""
    run = case.config.run.dir
    held = holder.read_state(run)
    if held is None:
        return ok("none") if run.exists() else None
    facts = {"holder": held.text, "lives": held.lives, "seconds": round(held.age_s, 1)}
    if held.lives is None:
        return warning(
            f"{run} is held by {held.text}; its last beat was {duration(held.age_s)} ago",
            "wait until it has ended; if it is dead, a job takes the folder over after faults.peer_s",
            **facts,
        )
    if held.lives:
        remedy = "wait until it has ended, or give another run.dir"
        return warning(f"{run} is in use by {held.text}: a job started now is refused", remedy, **facts)
    return ok(f"left by {held.text}, which is dead: a job takes the folder over", **facts)


def _saved(checkpoint: CheckpointFacts) -> str:
    ranks = checkpoint.manifest.get("world_size")
    took = f" in {duration(checkpoint.seconds)}" if checkpoint.seconds else ""
    return f"saved by {counted(ranks, 'rank')}{took}" if isinstance(ranks, int) else "saved by an unknown job"


CHECKS = (
    Check("start", start),
    Check("same settings", configuration),
    Check("same data", data),
    Check("same text", text),
    Check("position", position),
    Check("other job", other_job),
)

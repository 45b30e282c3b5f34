"""Batch and budget: does the global batch divide, and does every part of the method get steps?"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

from ppar_dist.data.batches import batching
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.findings import Check, Finding, counted, failure, listing, ok, warning
from ppar_dist.errors import UserError
from ppar_dist.ppar.alignment import Stage, stage_at
from ppar_dist.training.plan import make_plan


def batch(case: ConfigCase) -> Finding:
    """The global batch divides among the ranks and their micro-batches."""
    others = [ranks for ranks in range(1, case.config.train.global_batch + 1) if _divides(case, ranks)]
    facts = {"ranks": case.world_size, "possible_ranks": others}
    try:
        cut = batching(case.config, case.world_size)
    except UserError as error:
        return failure(str(error), f"numbers of ranks that divide it: {listing(others, 20)}", **facts)
    facts |= {
        "local_batch": cut.local_batch,
        "micro_batch": cut.micro_batch,
        "accumulation": cut.accumulation,
    }
    return ok(
        f"{cut.global_batch} = {counted(case.world_size, 'rank')} x {cut.accumulation} accumulated x "
        f"{cut.micro_batch} images; a resume may use {listing(others, 20)} ranks",
        **facts,
    )


def refusals(case: ConfigCase) -> Finding | None:
    """Refusals of training before its first step that no other check reports."""
    text = case.config.text.file
    reported = case.batching is None or any(domain.index is None for domain in case.domains)
    if reported or (text is not None and case.needs_text and not Path(str(text)).is_file()):
        return None
    try:
        make_plan(case.config, case.world_size)
    except UserError as error:
        return failure(str(error), "correct it: training refuses this before its first step")
    return None


def epochs(case: ConfigCase) -> Finding | None:
    """Images, epochs and held-out images."""
    if not case.sources_open or not any(case.train_size(index) for _, index in case.sources):
        return None  # another check reports it
    train = case.config.train
    indexes = [index for _, index in case.sources]
    images = sum(case.train_size(index) for index in indexes)
    held_out = sum(len(index) for index in indexes) - images
    rounds = train.steps * train.global_batch / images
    facts = {"images": images, "held_out": held_out, "epochs": round(rounds, 3)}
    often = f"{rounds:,.0f}" if rounds >= 100 else f"{rounds:.1f}"
    text = f"{often} epochs of {counted(images, 'image')}; {counted(held_out, 'image')} held out"
    if train.eval_every and not held_out:
        return warning(
            f"{text}: train.eval_every={train.eval_every} has nothing to evaluate on",
            "set data.holdout above 0, or train.eval_every=0",
            **facts,
        )
    if rounds < 1:
        return warning(f"{text}: not every image is seen", "raise train.steps or train.global_batch", **facts)
    return ok(text, **facts)


def stages(case: ConfigCase) -> Finding | None:
    """Every stage of the alignment has steps."""
    ppar, steps = case.config.ppar, case.config.train.steps
    if not (ppar.enabled and ppar.alignment.enabled):
        return None
    boundaries = ppar.alignment.boundaries
    first = [0, *(math.ceil(boundary * steps) for boundary in boundaries)]
    # The ceiling may be off by rounding; the stage of each step is the one that training uses.
    count = Counter(stage_at(step / steps, boundaries).name.lower() for step in range(steps))
    lengths = {stage.name.lower(): count[stage.name.lower()] for stage in Stage}
    text = ", ".join(f"{name} {number:,}" for name, number in lengths.items())
    none = [name for name, number in lengths.items() if not number]
    facts = {"steps": lengths, "first_step": dict(zip(lengths, first, strict=True))}
    if none:
        return warning(
            f"steps per stage: {text}; {listing(none)} never happens",
            "move ppar.alignment.boundaries apart or raise train.steps, unless that is intended",
            **facts,
        )
    return ok(f"steps per stage: {text}", **facts)


def saving(case: ConfigCase) -> Finding:
    """Checkpoints are frequent enough that a lost machine costs little."""
    every, steps = case.config.checkpoint.every, case.config.train.steps
    facts = {"every": every, "steps": steps}
    if every and every < steps:
        return ok(
            f"every {counted(every, 'step')}: a lost machine costs at most {every / steps:.0%} of the run",
            **facts,
        )
    return warning(
        f"checkpoint.every={every} of {counted(steps, 'step')}: a lost machine costs the whole run",
        "set checkpoint.every to a number of steps below train.steps",
        **facts,
    )


def _divides(case: ConfigCase, ranks: int) -> bool:
    try:
        batching(case.config, ranks)
    except UserError:
        return False
    return True


CHECKS = (
    Check("batch", batch),
    Check("refusals", refusals),
    Check("epochs", epochs),
    Check("stages", stages),
    Check("checkpoints", saving),
)

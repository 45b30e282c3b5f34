"""What a job reaches on many machines, told without them: step, limit, goodput, checkpoints, storage.

The formulas are those of scale.py and failure_cost.py; outlook.py says where every figure comes from.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.failure_cost import best_interval_s, goodput, lost_by_part
from ppar_dist.doctor.findings import Check, Finding, counted, failure, ok, size, warning
from ppar_dist.doctor.outlook import Outlook
from ppar_dist.doctor.scale import Step, efficiency
from ppar_dist.errors import UserError
from ppar_dist.text import duration

_POOR = 0.5  # share of what a rank alone reaches, and of the step in which devices compute
_LOST = 0.01  # of goodput that another interval between checkpoints would give back
_REMEDIES = {
    "compute": "use fewer machines",
    "host": "raise the images of a rank (train.global_batch), use fewer machines, or set engine.compile",
    "stragglers": "use fewer machines, or find the slow ones",
    "gradients": "use fewer machines or a faster network, or raise train.global_batch",
    "parameters": "use fewer machines, a faster network, a larger train.global_batch or engine.zero_stage=0",
    "loader": "raise data.workers where there are cores for them, or ask for machines with more cores",
    "storage": "copy the shards to a disk of each machine, or use fewer machines",
}


def inputs(case: ConfigCase) -> Finding:
    """Every figure of the model, and whether it was measured, counted, told or assumed."""
    try:
        found = case.outlook.inputs
    except UserError as error:
        return failure(str(error), "correct model.* as the message says")
    except OSError as error:
        return failure(f"storage of run.dir cannot be measured ({error.strerror})", "give --storage-gbps")
    lines = [f"{each.name}: {each.value} ({each.origin})" for each in found]
    return ok("\n".join(lines), **{each.name: f"{each.value} ({each.origin})" for each in found})


def step(case: ConfigCase) -> Finding | None:
    """The predicted step, part by part, and what limits it."""
    found = _outlook(case)
    if found is None:
        return None
    predicted, asked = found.step, case.config.train.global_batch
    reached = efficiency(found.work, found.machines)
    who = found.device if found.device != "CPU" else "rank"
    text = f"{counted(case.nodes, 'machine')} of {counted(found.machines.gpus, who)}, "
    text += f"{counted(found.batch, 'image')} a step"
    if found.batch != asked:
        text += f" (train.global_batch={asked} does not divide: told for the next that does)"
    text += (
        f"\n{_ms(predicted.seconds)} a step, {predicted.images_per_second:,.0f} images/s: {_parts(predicted)}"
        f"\nlimit: {predicted.limit}; each rank does {reached:.0%} of what one alone does with as many images"
    )
    facts: dict[str, Any] = {"seconds": predicted.seconds, "images_per_second": predicted.images_per_second}
    facts |= {
        "parts": predicted.parts,
        "limit": predicted.limit,
        "efficiency": reached,
        "images": found.batch,
    }
    if reached < _POOR or predicted.compute < _POOR * predicted.seconds:
        return warning(text, _REMEDIES[predicted.limit], **facts)
    return ok(text, **facts)


def failures(case: ConfigCase) -> Finding | None:
    """Failures to expect, what one costs, and the share of time in steps that count."""
    found = _outlook(case)
    if found is None:
        return None
    interval = _interval_s(case, found)
    lost = lost_by_part(interval, found.save, found.restart)
    share = goodput(interval, found.save, found.restart.seconds, found.mtbf_s)
    run_s = case.config.train.steps * found.step.seconds
    parts = ", ".join(f"{name} {duration(value)}" for name, value in lost.items() if value)
    text = (
        f"a failure every {duration(found.mtbf_s)}, {run_s / found.mtbf_s:.2g} in the {duration(run_s)} of "
        f"the run; one costs {duration(sum(lost.values()))}: {parts}\n"
        f"goodput {share:.1%}; a save blocks {duration(found.save.blocked_s)} and is whole "
        f"{duration(found.save.write_s)} later"
    )
    facts = {"mtbf_s": found.mtbf_s, "run_s": run_s, "goodput": share, "lost_s": lost}
    return ok(text, **facts, blocked_s=found.save.blocked_s, write_s=found.save.write_s)


def interval(case: ConfigCase) -> Finding | None:
    """``checkpoint.every`` beside the interval that loses least."""
    found = _outlook(case)
    if found is None:
        return None
    every, steps, seconds = case.config.checkpoint.every, case.config.train.steps, found.step.seconds
    best = recommended_every(found, steps)
    now, then = (
        goodput(each * seconds, found.save, found.restart.seconds, found.mtbf_s)
        for each in (every or steps, best)
    )
    text = (
        f"checkpoint.every={every} is {duration((every or steps) * seconds)}: goodput {now:.1%}; "
        f"best: {counted(best, 'step')}, {duration(best * seconds)}: {then:.1%}"
    )
    facts = {"every": every, "recommended": best, "goodput": now, "best_goodput": then}
    if then - now > _LOST:
        return warning(text, f"set checkpoint.every={best}", **facts)
    return ok(text, **facts)


def storage(case: ConfigCase) -> Finding | None:
    """Bytes per second that the storage must read and write for this job."""
    found = _outlook(case)
    if found is None:
        return None
    nodes, each = found.machines.nodes, found.machines.storage_each()
    free = replace(found.machines, storage=float("inf"))
    wanted = replace(found, machines=free).step
    reads = wanted.images_per_second * found.work.image_bytes
    writes = found.sizes.written / _interval_s(case, found)
    resume = found.sizes.whole * nodes
    text = (
        f"reading {size(reads / nodes)}/s for each machine, {size(reads)}/s in all; writing {size(writes)}/s "
        f"on average, a checkpoint of {size(found.sizes.written)}; a restart reads {size(resume)} in all; "
        f"a machine has {size(each)}/s"
    )
    facts = {"read_bytes_per_second": reads, "write_bytes_per_second": writes, "resume_bytes": resume}
    facts |= {"machine_bytes_per_second": each}
    if reads / nodes > each:
        return warning(f"{text}: too little to keep it busy", _REMEDIES["storage"], **facts)
    return ok(text, **facts)


def recommended_every(found: Outlook, steps: int) -> int:
    """Steps between checkpoints that lose least time, at most the run."""
    best = best_interval_s(found.save, found.mtbf_s) / found.step.seconds
    return max(1, round(min(best, steps)))


def _outlook(case: ConfigCase) -> Outlook | None:
    """None where the first check has said why there is none."""
    try:
        return case.outlook
    except (UserError, OSError):
        return None


def _interval_s(case: ConfigCase, found: Outlook) -> float:
    """Seconds between checkpoints as configured; the run's, where it saves at its end only."""
    return (case.config.checkpoint.every or case.config.train.steps) * found.step.seconds


def _parts(predicted: Step) -> str:
    return ", ".join(f"{name} {_ms(value)}" for name, value in predicted.parts.items() if value >= 5e-5)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms" if seconds < 1 else duration(seconds)


CHECKS = (
    Check("figures", inputs),
    Check("step on many machines", step),
    Check("failures", failures),
    Check("checkpoint interval", interval),
    Check("storage rate", storage),
)

"""A run's folder: is everything in it whole, and what would a restart lose?"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ppar_dist.checkpoint import MANIFEST, checkpoints_dir
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.doctor.findings import (
    Check,
    Diagnosis,
    Finding,
    counted,
    failure,
    listing,
    ok,
    run_checks,
    size,
    warning,
)
from ppar_dist.errors import UserError
from ppar_dist.run import paths
from ppar_dist.run.facts import (
    CheckpointFacts,
    LogFacts,
    has_ended,
    leftovers,
    read_checkpoints,
    read_latest,
    read_log,
    read_records,
)
from ppar_dist.text import duration


@dataclass
class RunCase:
    """A run's folder; each part of it is read once."""

    path: Path

    @cached_property
    def config(self) -> Config | None:
        """Its configuration, None where it cannot be read."""
        try:
            return load_config(paths.config_file(self.path))
        except UserError:
            return None

    @cached_property
    def checkpoints(self) -> list[CheckpointFacts]:
        """Its checkpoints, oldest first, every file of them hashed."""
        return read_checkpoints(self.path)

    @property
    def newest(self) -> CheckpointFacts | None:
        """The newest whole checkpoint."""
        return next((item for item in reversed(self.checkpoints) if item.whole), None)

    @cached_property
    def logs(self) -> dict[str, LogFacts]:
        """Its metric files by name."""
        files = paths.metrics_files(self.path)
        return {path.name: log for path in files if (log := read_log(path)) is not None}


def configuration(case: RunCase) -> Finding:
    """``config.yaml`` can be read."""
    try:
        config = load_config(paths.config_file(case.path))
    except UserError as error:
        remedy = "a job started with --accept-changes writes it again; or give the run.dir of a training run"
        return failure(str(error), remedy)
    name = config.run.name or config.run.dir.name
    text = f"{name}: {counted(config.train.steps, 'step')} of {counted(config.train.global_batch, 'image')}"
    return ok(text, steps=config.train.steps)


def checkpoints(case: RunCase) -> Finding:
    """Every checkpoint is whole."""
    facts = {"checkpoints": {item.path.name: item.problems or "whole" for item in case.checkpoints}}
    if not case.checkpoints:
        return ok("none yet", **facts)
    damaged = [item for item in case.checkpoints if not item.whole]
    sizes = ", ".join(f"{item.path.name} {size(item.bytes)}" for item in case.checkpoints if item.whole)
    why = "\n".join(f"{item.path.name} is damaged: {listing(item.problems, 3)}" for item in damaged)
    if len(damaged) == len(case.checkpoints):
        return failure(
            f"none of {counted(len(damaged), 'checkpoint')} can be used, "
            f"and a job refuses to begin at step 0 again\n{why}",
            "restore one from a copy, or give another run.dir; `ppar-dist inspect` shows the state of files",
            **facts,
        )
    if damaged:
        remedy = "nothing if an older one will do, a resume passes damaged ones over; else restore them"
        return warning(f"whole: {sizes}\n{why}", remedy, **facts)
    return ok(f"whole: {sizes}", **facts)


def latest(case: RunCase) -> Finding | None:
    """``latest`` names a checkpoint that is there and whole."""
    name = read_latest(case.path)
    remedy = "nothing: a resume looks at the checkpoints themselves, and the next one replaces it"
    if name is None:
        return warning("there are checkpoints, but no `latest`", remedy) if case.checkpoints else None
    found = next((item for item in case.checkpoints if item.path.name == name), None)
    if found is None:
        return warning(f"`latest` names {name!r}, which is not there", remedy, latest=name)
    if not found.whole:
        return warning(f"`latest` names {name}, which is damaged", remedy, latest=name)
    if found is not case.newest:
        return warning(f"`latest` names {name}, which is not the newest", remedy, latest=name)
    return ok(name, latest=name)


def unfinished(case: RunCase) -> Finding | None:
    """No save or deletion was cut short."""
    found = leftovers(case.path)
    if not found:
        return None
    text = listing((f"{name} {size(total)}" for name, total in found.items()), 10)
    return warning(
        f"left by a save or a deletion that was cut short, or is under way: {text}",
        f"if no job is running, delete them from {checkpoints_dir(case.path)}",
        leftovers=found,
    )


def metric_files(case: RunCase) -> Finding | None:
    """Every line of the metric files can be read."""
    if not case.logs:
        return None
    facts = {
        name: {
            "records": log.records,
            "cut": log.cut,
            "unreadable": log.unreadable[:20],
            "problem": log.problem,
        }
        for name, log in case.logs.items()
    }
    bad = [text for name, log in case.logs.items() if (text := _unreadable(name, log))]
    cut = [name for name, log in case.logs.items() if log.cut]
    if bad:
        remedy = f"delete these lines (below {case.path / 'metrics'}); their content is lost"
        return warning("; ".join(bad), remedy, files=facts)
    if cut:
        return warning(
            f"{listing(cut)}: the last line is cut, by a job that is writing it or was killed",
            "nothing: a resume drops it",
            files=facts,
        )
    return ok(", ".join(f"{name} {log.records:,}" for name, log in case.logs.items()), files=facts)


def repeated(case: RunCase) -> Finding | None:
    """How much work a restart would repeat."""
    log = case.logs.get("train.jsonl")
    logged = log.last.get("step") if log is not None and log.last is not None else None
    if not isinstance(logged, int):
        return None
    saved = (case.newest.step() or 0) if case.newest is not None else 0
    lost = max(0, logged - saved)
    facts = {"last_logged": logged, "last_checkpoint": saved, "repeated_steps": lost}
    text = f"logged up to step {logged:,}, newest whole checkpoint at {saved:,}"
    if not lost:
        return ok(f"{text}: nothing would be repeated", **facts)
    text += f": a restart repeats {counted(lost, 'step')}"
    seconds = log.last.get("seconds") if log is not None and log.last is not None else None
    text += f", about {duration(lost * seconds)}" if isinstance(seconds, (int, float)) else ""
    every = case.config.checkpoint.every if case.config is not None else 0
    if every and lost > every:
        return warning(
            f"{text}, although one is due every {counted(every, 'step')}",
            "search the log for saves that failed, and check the storage",
            **facts,
        )
    return ok(text, **facts)


def events(case: RunCase) -> Finding | None:
    """Events that the run recorded: faults, rollbacks, resumes."""
    count: Counter[str] = Counter()
    log = read_log(paths.metrics_file(case.path, "events"), count)
    if log is None or not count:
        return None
    text = ", ".join(f"{kind} {number}" for kind, number in count.most_common())
    step = log.last.get("step") if log.last is not None else None
    text += f"; the last at step {step:,}" if isinstance(step, int) else ""
    return ok(text, events=dict(count))


def bad_samples(case: RunCase) -> Finding | None:
    """Samples that were found bad and replaced, each once, as data.max_bad_ratio counts them."""
    found: dict[tuple[str, str], str] = {}  # reason of each by domain and number
    times = 0
    for path in paths.quarantine_files(case.path):
        for record in read_records(path):
            times += 1
            where = str(record.get("domain")), str(record.get("sample"))
            found[where] = str(record.get("reason", "unknown"))
    if not found:
        return None
    domains, reasons = Counter(name for name, _ in found), Counter(found.values())
    seen = case.logs["train.jsonl"].last if "train.jsonl" in case.logs else None
    total = seen.get("samples_seen") if seen is not None else None
    by = ", ".join(f"{name} {number}" for name, number in domains.most_common())
    why = ", ".join(f"{name} {number}" for name, number in reasons.most_common())
    text = f"{counted(len(found), 'bad sample')} replaced {counted(times, 'time')} ({why}; {by})"
    text += f"; {total:,} seen" if isinstance(total, int) else ""
    return warning(
        text,
        f"see {paths.quarantine(case.path)}; repair what it names, before data.max_bad_ratio ends a job",
        reasons=dict(reasons),
        domains=dict(domains),
    )


def results(case: RunCase) -> Finding | None:
    """A finished run has its table and its report, and they are of the last checkpoint."""
    config, newest = case.config, case.newest
    if config is None or newest is None or not has_ended(newest, config):
        return None
    expected = [paths.REPORT, *([paths.RESULTS] if config.targets else [])]
    missing = [name for name in expected if not (case.path / name).is_file()]
    facts = {"missing": missing}
    if missing:
        return warning(
            f"the run is finished, but {listing(missing)} is missing",
            "start the job again, or run `ppar-dist evaluate` and `ppar-dist report`",
            **facts,
        )
    old = [name for name in expected if _is_older(case.path / name, newest)]
    if old:
        remedy = "run `ppar-dist evaluate` and `ppar-dist report` again"
        return warning(f"{listing(old)} is older than {newest.path.name}", remedy, older=old, **facts)
    return ok(f"{listing(expected)} of {newest.path.name}", **facts)


def _unreadable(name: str, log: LogFacts) -> str | None:
    if log.problem:
        return f"{name} cannot be read ({log.problem})"
    if log.unreadable:
        return f"{name}: {counted(len(log.unreadable), 'line')} not valid JSON ({listing(log.unreadable)})"
    return None


def _is_older(path: Path, newest: CheckpointFacts) -> bool:
    """Whether a result is of an older checkpoint: by the step it states, or else by its time."""
    if path.suffix == ".json":
        try:
            stored: Any = json.loads(path.read_bytes())
        except ValueError:
            return True
        if isinstance(stored, dict) and isinstance(stored.get("step"), int):
            return bool(stored["step"] < (newest.step() or 0))
    return path.stat().st_mtime < (newest.path / MANIFEST).stat().st_mtime


CHECKS = (
    Check("configuration", configuration),
    Check("checkpoints", checkpoints),
    Check("latest", latest),
    Check("leftovers", unfinished),
    Check("metric files", metric_files),
    Check("to repeat", repeated),
    Check("events", events),
    Check("bad samples", bad_samples),
    Check("results", results),
)


def examine_run(path: Path) -> Diagnosis:
    """Run every check of a run's folder; it is only read."""
    return run_checks(str(path), [("Run", CHECKS)], RunCase(path))

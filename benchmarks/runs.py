"""Training runs for benchmarks: a process of one thread each, a few at a time, never the same one twice.

A run's folder below the benchmark's output is named by what determines its result: the configuration with
its seed, the fingerprints of its sources, the hashes of its weights and text embeddings. So a finished run is
found again, and an interrupted one resumes from its checkpoint. Beside what ``ppar-dist train`` writes it has

    bench.json         what determines the run, and its attempts: source tree, CPU seconds
    train.log          output of the training process
    judged/NAME.npz    confusion matrix of every image of a target (benchmarks/judge.py)

Keys that have their default value are no part of the name, so that a new key leaves earlier runs valid: the
tables name such keys, and say where runs are not of the present source tree. A default that has changed is
refused.
"""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.judge import HELD_OUT, is_judged, judge, read_source
from benchmarks.records import (
    changed_defaults,
    identity,
    key_of,
    new_keys,
    read_record,
    source_tree,
    write_record,
)
from benchmarks.streets import environment, weights_folder
from ppar_dist.config.identity import determining
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.config.weights import find_weights
from ppar_dist.sweep.children import Children

# Free keys: they change nothing that is computed.
_FREE = ("monitoring.enabled=false", "checkpoint.keep_last=1", "checkpoint.keep_best=false")


@dataclass(frozen=True)
class Run:
    """One training run, identified by ``key``."""

    name: str  # for people: the variant, for example
    seed: int
    file: Path  # configuration
    overrides: tuple[str, ...]
    folder: Path
    config: Config

    @property
    def key(self) -> str:
        """The name of its folder."""
        return self.folder.name

    @property
    def is_finished(self) -> bool:
        """Whether it was trained to its end."""
        return bool(read_record(self.folder).get("finished"))

    def is_judged(self, targets: Iterable[str]) -> bool:
        """Whether it is finished and was judged on these targets and on held-out source data."""
        return self.is_finished and all(is_judged(self.folder, name) for name in (*targets, HELD_OUT))

    def cpu_seconds(self) -> float | None:
        """CPU time of its training process; None if there was more than one."""
        attempts = read_record(self.folder).get("attempts", [])
        return attempts[0]["cpu_s"] if len(attempts) == 1 else None


def plan_run(name: str, seed: int, file: Path, out: Path, overrides: Sequence[str]) -> Run:
    """The run of a configuration with overrides; its sources and weights are there already.

    Raises:
        UserError: the configuration is wrong, or its sources or weights cannot be read.
    """
    given = (*overrides, f"seed={seed}", *_FREE)
    config = find_weights(load_config(file, given), weights_folder())
    folder = out / key_of(config)
    changed = changed_defaults(folder, config)
    if changed:
        sys.exit(
            f"{folder} was trained with another default: {'; '.join(changed)}; delete the folder, or give "
            "another --out"
        )
    return Run(name, seed, file, (*given, f"run.dir={folder}"), folder, config)


def source_trees(runs: Iterable[Run], targets: Iterable[str]) -> list[str]:
    """Source trees that trained the runs, or judged them on the targets."""
    found = set()
    for run in runs:
        found |= {attempt["source"] for attempt in read_record(run.folder)["attempts"]}
        found |= {read_source(run.folder, name) for name in targets}
    return sorted(found)


def stop_on_signals() -> None:
    """End on SIGTERM as on Ctrl-C, so that `run_all` can end its children."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))


def provenance(runs: Sequence[Run], targets: Iterable[str], parallel: int) -> str:
    """What a table says of its origin, with a warning where that is not one source tree, the present one."""
    trees, now = source_trees(runs, targets), source_tree()
    text = f"Runs of one thread, {parallel} at a time; source tree {', '.join(trees)}."
    if len(trees) > 1:
        text += f" **Runs of {len(trees)} different source trees are mixed.**"
    elif trees != [now]:
        text += f" **The present source tree is another one, {now}.**"
    later = sorted({key for run in runs for key in new_keys(run.folder, run.config)})
    return text + (f" Keys that some of the runs did not know yet: {', '.join(later)}." if later else "")


def run_all(runs: Sequence[Run], targets: Mapping[str, Path], parallel: int) -> list[str]:
    """Train and judge every run that lacks it, ``parallel`` at a time.

    Returns:
        What went wrong, a line per run; the other runs are finished all the same.
    """
    distinct = list({run.key: run for run in runs}.values())
    children = Children()
    problems = []
    pool = ThreadPoolExecutor(parallel)
    try:
        futures = {pool.submit(_train_and_judge, run, targets, children): run for run in distinct}
        for future in as_completed(futures):
            if (error := future.exception()) is not None:
                problems.append(f"{futures[future].name}, seed {futures[future].seed}: {error}")
                print(problems[-1], flush=True)
    finally:  # interrupted: the children save what they have, and the next call resumes them
        children.end()
        pool.shutdown(cancel_futures=True)
    return problems


def run_variants(
    planned: Sequence[tuple[str, Run]], targets: Mapping[str, Path], parallel: int
) -> tuple[dict[str, dict[int, Run]], list[str]]:
    """`run_all` of named runs.

    Returns:
        The runs that are trained and judged, by variant and seed; and what went wrong with the others.
    """
    problems = run_all([run for _, run in planned], targets, parallel)
    found: dict[str, dict[int, Run]] = {}
    for name, run in planned:
        if run.is_judged(targets):
            found.setdefault(name, {})[run.seed] = run
            _link_by_name(run)
    return found, problems


def _link_by_name(run: Run) -> None:
    """A symbolic link ``by-name/NAME-seedN`` beside the run's folder, for people and other benchmarks."""
    link = run.folder.parent / "by-name" / f"{re.sub('[^A-Za-z0-9]+', '-', run.name)}-seed{run.seed}"
    link.parent.mkdir(exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path("..") / run.key)


def _train_and_judge(run: Run, targets: Mapping[str, Path], children: Children) -> None:
    news = not run.is_finished
    if news:
        _train(run, children)
    news = judge(run.folder, targets, source_tree()) or news
    if news:
        print(f"{run.name}, seed {run.seed}: done, {run.folder}", flush=True)


def _train(run: Run, children: Children) -> None:
    """Train to the end; raises RuntimeError with the last words of a process that fails."""
    run.folder.mkdir(parents=True, exist_ok=True)
    record = read_record(run.folder) or {
        "name": run.name,
        "identity": identity(run.config),
        "config": determining(run.config),
        "attempts": [],
    }
    attempt: dict[str, Any] = {"source": source_tree(), "cpu_s": None}
    record["attempts"].append(attempt)
    write_record(run.folder, record)  # before it starts: one that is killed counts as an attempt
    command = [sys.executable, "-m", "ppar_dist", "train", str(run.file), *run.overrides, "--nproc", "1"]
    with (run.folder / "train.log").open("ab") as log:
        code, attempt["cpu_s"] = children.wait(
            lambda: subprocess.Popen(command, env=environment(), stdout=log, stderr=subprocess.STDOUT)
        )
    record["finished"] = code == 0
    write_record(run.folder, record)
    if code:
        words = (run.folder / "train.log").read_text(encoding="utf-8", errors="replace").splitlines()[-5:]
        raise RuntimeError(f"training ended with {code} ({run.folder / 'train.log'}): {' / '.join(words)}")

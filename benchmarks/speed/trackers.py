"""The cost of trackers per step: TensorBoard and CSV against none, paired in one run.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.trackers [--rounds 7] [--steps 20] [key=value ...]

Both sides take the same steps from memory and write the same records of them, every one; on one side a
tracker's thread carries the records, as in a run. The CPU time of the process is measured, with the tracker's
last look, so nothing of its work is left out. `train.log_every` of a run is 10: there it is a tenth.
What a record costs by itself, its median of many, is printed too: it is what whole steps are too coarse to
see.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.speed.monitoring import Side
from benchmarks.speed.trainers import monitored_trainer, street_options
from ppar_dist.config.schema import Config
from ppar_dist.files.jsonl import JsonLines, read
from ppar_dist.run import paths
from ppar_dist.trackers.all_trackers import _make
from ppar_dist.trackers.follower import Follower
from ppar_dist.trackers.points import train_point
from ppar_dist.trackers.tracker import About

NAMES = ("tensorboard", "csv")
_CLOSE_S = 60.0


def record_of(side: Side) -> dict[str, Any]:
    """A line of ``metrics/train.jsonl``, as the recorder writes it."""
    trainer = side.trainer
    assert side.figures is not None
    state = trainer.learner.objective.state
    figures = replace(side.figures, detail=None if state is None else state.detail())
    trainer.state.step = trainer.config.train.steps - trainer.config.train.steps % trainer.log._every
    trainer.log.step(trainer.state, figures, trainer.learner.engine, 0.2, 0.001)
    file = trainer.log._files["train"]
    file.flush()
    *_, line = read(paths.metrics_file(trainer.config.run.dir, "train"))
    assert line.record is not None
    return dict(line.record)


def seconds(side: Side, about: About, name: str | None, record: Mapping[str, Any], steps: int) -> float:
    """CPU seconds of this process per step, each of which writes a record that the tracker carries."""
    with tempfile.TemporaryDirectory(prefix="ppar-tracked-") as folder:
        here = replace(about, run=Path(folder))
        lines = JsonLines(paths.metrics_file(here.run, "train"))
        lines.open()
        follower = None if name is None else Follower(name, here, _make(name, here))
        if follower is not None:
            follower.start(0)
        began = time.process_time()
        for number in range(steps):
            side.step(number, publishes=False)
            lines.write({**record, "step": number + 1})
        lines.close()
        if follower is not None:
            follower.close(_CLOSE_S)
        return (time.process_time() - began) / steps


def cost_of_record(about: About, name: str, record: Mapping[str, Any], repeats: int = 300) -> float:
    """Median CPU seconds of carrying one record."""
    with tempfile.TemporaryDirectory(prefix="ppar-tracked-") as folder:
        here = replace(about, run=Path(folder))
        tracker, taken = _make(name, here), []
        tracker.open({}, 0)
        for number in range(repeats):
            began = time.process_time()
            tracker.write([train_point({**record, "step": number + 1})])
            taken.append(time.process_time() - began)
        tracker.close()
    return statistics.median(taken)


def report(side: Side, config: Config, options: argparse.Namespace) -> None:
    """Print a line for each tracker: CPU per record, and the paired ratio."""
    about, every = About.of(config), config.train.log_every
    side.seconds(3, publishes=False)  # warm up
    record = record_of(side)
    for name in NAMES:
        seconds(side, about, name, record, 1)  # its library is loaded
    base = statistics.median(seconds(side, about, None, record, 5) for _ in range(3))
    print(f"a step without: {base:.3f} s CPU; a record has {len(train_point(record).values)} figures")
    print("| tracker | ms per record | % of a step, one record in 10 | paired, a record each step |")
    print("|---|---|---|---|", flush=True)
    for name in NAMES:
        ratios = []
        for number in range(options.rounds):
            order = (name, None) if number % 2 else (None, name)  # neither is always the first
            found = {each: seconds(side, about, each, record, options.steps) for each in order}
            ratios.append(found[name] / found[None])
        ratios.sort()
        each, low, high = cost_of_record(about, name, record), ratios[0], ratios[-1]
        share = 100 * each / every / base
        print(
            f"| {name} | {1e3 * each:.2f} | {share:.3f} | {statistics.median(ratios):.4f} ({low:.4f} to "
            f"{high:.4f}) |",
            flush=True,
        )


def main() -> None:
    """Train a few steps with and without each tracker."""
    options = street_options(__doc__, steps=20, rounds=7).parse_args()
    with monitored_trainer(options) as (trainer, monitor):
        report(Side(trainer, monitor, 8), trainer.config, options)


if __name__ == "__main__":
    main()

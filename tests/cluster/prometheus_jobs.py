"""Real jobs for a Prometheus to watch: one through all stages, one with which everything goes wrong."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ppar_dist.data.index import DomainIndex
from tests.cluster.prometheus_server import Prometheus
from tests.faults.jobs import Job, free_port, job, last_step, ours
from tests.ranks import tiny_config, write_blocks_domain, write_config
from tests.unit.street_shards import overwrite

BATCH = 6
NOT_FINITE = 80  # steps in a row: several seconds, so that a scrape falls among them


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and the time it took in Prometheus' eyes (seconds since 1970)."""

    start: float
    end: float
    steps: int


class Faulty:
    """A job whose faults are at hand."""

    def __init__(self, running: Job, run: Path) -> None:
        self._job, self._run = running, run

    def step(self) -> int:
        """The last step logged."""
        return last_step(self._run)

    def rank(self, number: int) -> int:
        """The process id of a rank."""
        for process in self._job.family():
            try:
                parent = process.parent()
                mine = process.environ().get("RANK") == str(number)
                if mine and parent is not None and "RANK" not in parent.environ():
                    return process.pid
            except psutil.Error:
                continue
        raise AssertionError(f"no rank {number}:\n{self._job.output}")

    def lose_storage(self) -> None:
        """A file where the folder of checkpoints was: from now on every save fails."""
        (self._run / "checkpoints").rename(self._run / "away")
        (self._run / "checkpoints").touch()


def whole_run(server: Prometheus, run: str, folder: Path, steps: int = 160) -> Watched:
    """Train on two ranks through all stages to the end."""
    config = _config(server, run, folder, data={"holdout": 0.25}, steps=steps, every=steps // 4)
    start = time.time()
    with job(ours("train", config, "--nproc", "2"), folder / "log") as running:
        server.wait_for(lambda: server.now(f'ppar_steps_total{{run="{run}"}} > 0'), "step in Prometheus")
        assert running.wait() == 0, running.output
    end = time.time()
    server.wait_for(lambda: not server.ask("targets")["activeTargets"], "end of the targets")
    return Watched(start, end, steps)


@contextmanager
def faulty_job(server: Prometheus, run: str, folder: Path) -> Iterator[Faulty]:
    """A job on two ranks with a changed sample, poisoned from its 100th step on for a while.

    It would train for hours; leaving the context kills it, as a lost machine would.
    """
    config = _config(server, run, folder, data={"max_bad_ratio": 1.0}, steps=100_000, every=20)
    overwrite(DomainIndex.open(folder / "shards" / "left"), 4, "image", b"spoiled")
    first = 100 * BATCH
    poisoned = ["tests.faults.poisoned", "loss", str(first), str(first + NOT_FINITE * BATCH)]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "--module", *poisoned, "train", config]
    with job(command, folder / "log") as running:
        yield Faulty(running, folder / run)


def _config(
    server: Prometheus, run: str, folder: Path, data: dict[str, float], steps: int, every: int
) -> str:
    root = folder / "shards"
    write_blocks_domain(root / "left", samples=24, seed=1, rare_in=3)
    write_blocks_domain(root / "right", samples=16, seed=2, rare_in=3)
    evaluations = every if "holdout" in data else 0
    monitoring = {"enabled": True, "port": 0, "targets_file": str(server.targets / f"{run}.json")}
    tree = tiny_config(
        root,
        folder / run,  # its name is the run's
        data=data,
        train={"steps": steps, "global_batch": BATCH, "log_every": 1, "eval_every": evaluations},
        checkpoint={"every": every},
        faults={"max_non_finite": NOT_FINITE},
        monitoring=monitoring,
    )
    return str(write_config(folder / "config.yaml", tree))

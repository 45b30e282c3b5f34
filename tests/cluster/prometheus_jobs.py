"""Real jobs for Prometheus to watch: one through all stages, one with many faults."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from ppar_dist.config.load import load_config
from ppar_dist.data.shards.index import DomainIndex
from tests.cluster.prometheus_server import Prometheus
from tests.faults.jobs import Job, free_port, job, last_step, sabotaged
from tests.ranks import tiny_config, write_blocks_domain, write_config
from tests.sabotage.pace import Pace
from tests.unit.street_shards import overwrite

BATCH = 6
SLOW_S = 1.0  # per step, while something is awaited
STEADY_S = 0.2  # per step, where shares of time and of steps count
FIRST_NOT_FINITE, NOT_FINITE = 20, 30  # step, and steps in a row: what a scrape must fall among


@dataclass(frozen=True)
class Watched:
    """A run that has ended, and the time that Prometheus saw it (seconds since 1970)."""

    start: float
    end: float
    steps: int


class Faulty:
    """A job with switches for its faults."""

    def __init__(self, running: Job, run: Path, pace: Pace) -> None:
        self._job, self._run, self._pace = running, run, pace

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

    def go_on(self) -> None:
        """Do steps at a steady pace again."""
        self._pace.set(seconds=STEADY_S)

    def lose_storage(self) -> None:
        """A file where the folder of checkpoints was: from now on every save fails."""
        (self._run / "checkpoints").rename(self._run / "away")
        (self._run / "checkpoints").touch()


def whole_run(server: Prometheus, run: str, folder: Path, steps: int = 80) -> Watched:
    """Train on two ranks through all stages to the end; no stage ends before Prometheus has seen it."""
    config = _config(server, run, folder, data={"holdout": 0.25}, steps=steps, every=steps // 4)
    shares = load_config(Path(config)).ppar.alignment.boundaries
    starts = [round(share * steps) for share in (0.0, *shares)]
    pace = Pace(folder / "pace", seconds=SLOW_S)
    begin = time.time()
    command = sabotaged(pace.pace, "train", config, "--nproc", "2")
    with job(command, folder / "log") as running:
        for first in starts:
            pace.set(first, SLOW_S)
            running.wait_for(lambda first=first: _is_seen(server, run, first), f"scrapes after step {first}")
        pace.release()
        assert running.wait() == 0, running.output
    end = time.time()
    server.wait_for(lambda: not server.ask("targets")["activeTargets"], "end of the targets")
    lately = f'max_over_time(count(ppar_progress_ratio{{run="{run}"}})[3s:1s])'
    server.wait_for(lambda: not server.now(lately), "end of the series")  # the console waits for as long
    return Watched(begin, end, steps)


def _is_seen(server: Prometheus, run: str, step: int) -> bool:
    """Whether both ranks answer, and scrapes since ``step`` hold two steps, of which a rate can be made."""
    scraped = {value for value in server.scraped(f'ppar_steps_total{{run="{run}"}}') if value > step}
    return len(scraped) > 1 and bool(server.now(f'run:ppar_ranks_up:sum{{run="{run}"}} == 2'))


@contextmanager
def faulty_job(server: Prometheus, run: str, folder: Path) -> Iterator[Faulty]:
    """A job on two ranks with a changed sample, poisoned from its 20th step on for a while.

    It slows down there until it is told to go on. It would train for hours; leaving the context kills it, as
    a lost machine would.
    """
    config = _config(server, run, folder, data={"max_bad_ratio": 1.0}, steps=100_000, every=10)
    pace = Pace(folder / "pace", FIRST_NOT_FINITE, SLOW_S)
    overwrite(DomainIndex.open(folder / "shards" / "left"), 4, "image", b"spoiled")
    first, stop = (BATCH * step for step in (FIRST_NOT_FINITE, FIRST_NOT_FINITE + NOT_FINITE))
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(free_port()), "--module"]
    command += ["tests.sabotage", f"poison=loss,{first},{stop}", pace.pace, "train", config]
    with job(command, folder / "log") as running:
        yield Faulty(running, folder / run, pace)


def _config(
    server: Prometheus, run: str, folder: Path, data: dict[str, float], steps: int, every: int
) -> str:
    root = folder / "shards"
    write_blocks_domain(root / "left", samples=24, seed=1, rare_in=3)
    write_blocks_domain(root / "right", samples=16, seed=2, rare_in=3)
    evaluations = every if "holdout" in data else 0
    monitoring = {
        "enabled": True,
        "port": 0,
        "targets_file": str(server.targets / f"{run}.json"),
        "linger_s": 120.0,  # until the last figures have been scraped, however late that is
    }
    tree = tiny_config(
        root,
        folder / run,  # its name is the run's
        data=data,
        train={"steps": steps, "global_batch": BATCH, "log_every": 1, "eval_every": evaluations},
        checkpoint={"every": every},
        engine={"peak_tflops": 0.01},  # so that there is an MFU
        # Nothing but the test ends it: a stopped rank is left to the alerts.
        faults={"max_non_finite": NOT_FINITE, "stall_s": 3600.0, "peer_s": 3600.0},
        monitoring=monitoring,
    )
    return str(write_config(folder / "config.yaml", tree))

"""A training job that SIGKILL ends repeatedly, at critical moments, until it is done all the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

RANKS, STAGES = (1, 2, 3), (0, 1, 2)
_MARK = "PPAR_KILLS_JOB"  # in the environment of all processes of a job: they are found by it
_POLL_S = 0.01
_START_S = 10.0  # of which a kill during the start takes its moment
_PATIENCE_S = 300.0  # for what a job should do within seconds


@dataclass(frozen=True)
class Stand:
    """Where a run is held until it has been killed often enough: a fast machine would end it before.

    Attributes:
        module: started instead of ``ppar_dist``, with what precedes its arguments; it holds the run.
        begin: called before each start.
        reached: whether this start is held; it is killed then, whichever moment was drawn.
        release: lets it go on.
    """

    module: Sequence[str]
    begin: Callable[[], object]
    reached: Callable[[], bool]
    release: Callable[[], object]


class Job:
    """``ppar-dist train``, and all processes that it starts."""

    def __init__(
        self,
        config: Path,
        log: Path,
        ranks: int,
        overrides: Sequence[str] = (),
        stand: Stand | None = None,
    ) -> None:
        self.stand = stand
        self.log, self.ranks, self._mark = log, ranks, f"{os.getpid()}-{time.monotonic_ns()}"
        kept = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
        extra = {
            _MARK: self._mark,
            "OMP_NUM_THREADS": "1",
            "DS_ACCELERATOR": "cpu",
            "CUDA_VISIBLE_DEVICES": "",
        }
        module = ["ppar_dist"] if stand is None else stand.module
        command = [sys.executable, "-m", *module, "train", str(config), *overrides, "--nproc", str(ranks)]
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                command, env=kept | extra, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def code(self) -> int | None:
        """The exit code; None while the job runs."""
        return self._process.poll()

    def processes(self) -> dict[int, psutil.Process]:
        """All live processes, by process id."""
        found = {}
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found[process.pid] = process
        return found

    def rank_processes(self) -> list[psutil.Process]:
        """The trainers, in the order of their ranks."""
        found = {}
        for process in self.processes().values():
            with suppress(psutil.Error):
                rank = process.environ().get("RANK")
                if rank is not None and "ppar_dist" in process.cmdline():
                    found[int(rank)] = process
        return [found[rank] for rank in sorted(found)]

    def kill(self, victim: str, rng: random.Random) -> str:
        """SIGKILL to a ``tree`` (all), a ``rank`` or the ``launcher``; or to all. Says which."""
        trainers = self.rank_processes() if victim != "tree" else []
        if victim == "rank" and trainers:
            _kill(rng.choice(trainers))
            return victim
        if victim == "launcher" and trainers:
            with suppress(psutil.NoSuchProcess):
                _kill(psutil.Process(trainers[0].ppid()))
            return victim
        self.kill_all()
        return "tree"

    def kill_all(self) -> None:
        """SIGKILL until nothing of the job lives."""
        while found := self.processes():
            for process in found.values():
                _kill(process)
        self._process.wait()

    def wait(self) -> int:
        """Until all of its processes have ended; returns the exit code.

        Raises:
            TimeoutError: they do not end.
        """
        deadline = time.monotonic() + _PATIENCE_S
        while self.code is None or self.processes():
            if time.monotonic() > deadline:
                self.kill_all()
                raise TimeoutError(
                    f"did not end in {_PATIENCE_S:g} s:\n{self.log.read_text(errors='replace')}"
                )
            time.sleep(0.1)
        return self._process.wait()


@dataclass
class Siege:
    """The kills of a run: how many, and when."""

    kills: Counter[str] = field(default_factory=Counter)  # by what was killed
    moments: Counter[str] = field(default_factory=Counter)  # by when
    ranks: list[int] = field(default_factory=list)  # of each start
    stages: list[int] = field(default_factory=list)
    codes: Counter[int] = field(
        default_factory=Counter
    )  # exit codes of jobs of which some processes were left


def besiege(
    config: Path,
    run: Path,
    every: int,
    kills: int,
    seed: int,
    same: tuple[int, int] | None = None,
    stand: Stand | None = None,
) -> Siege:
    """Train ``config`` to its end, and kill it ``kills`` times on the way.

    Args:
        config: its ``run.dir`` is ``run``, its ``checkpoint.every`` is ``every``.
        run: the run's folder.
        every: steps.
        kills: fewer only if the run ends before, as it cannot with ``stand``.
        seed: of moments, victims, ranks and stages.
        same: (ranks, ZeRO stage) of all starts; None: others at each start.
        stand: where the run waits for its last kill.

    Raises:
        RuntimeError: a job ended in a way that no kill explains.
        TimeoutError: a job neither went on nor ended.
    """
    rng, siege = random.Random(seed), Siege()
    logs = config.parent / "logs"
    logs.mkdir(exist_ok=True)
    while True:
        ranks, stage = same or _others(rng, siege)
        siege.ranks.append(ranks)
        siege.stages.append(stage)
        log = logs / f"{config.stem}-{len(siege.ranks):03d}.txt"
        if stand is not None:
            stand.begin()
        job = Job(config, log, ranks, [f"engine.zero_stage={stage}"], stand)
        try:
            if siege.kills.total() < kills:
                _strike(job, run, every, rng, siege)
            elif stand is not None:
                stand.release()
            code = job.wait()
        finally:
            job.kill_all()
        if code == 0:
            return siege
        if code not in (75, -9):
            raise RuntimeError(
                f"start {len(siege.ranks)} ended with {code}:\n{log.read_text(errors='replace')}"
            )
        siege.codes[code] += 1


def _others(rng: random.Random, siege: Siege) -> tuple[int, int]:
    """Other ranks and another stage than the last start had."""
    ranks = rng.choice([n for n in RANKS if not siege.ranks or n != siege.ranks[-1]])
    return ranks, rng.choice([n for n in STAGES if not siege.stages or n != siege.stages[-1]])


def _strike(job: Job, run: Path, every: int, rng: random.Random, siege: Siege) -> None:
    """Wait for a drawn moment and kill; a job that ends before is left alone."""
    moment = rng.choices(tuple(_MOMENTS), weights=[weight for weight, _ in _MOMENTS.values()])[0]
    victim = rng.choices(("tree", "rank", "launcher"), weights=(6, 2, 2))[0]
    if _MOMENTS[moment][1](job, run, every, rng):
        siege.kills[job.kill(victim, rng)] += 1
        siege.moments[moment] += 1


def _while_starting(job: Job, run: Path, every: int, rng: random.Random) -> bool:
    _wait(job, lambda: False, rng.uniform(0, _START_S))
    return job.code is None


def _between_steps(job: Job, run: Path, every: int, rng: random.Random) -> bool:
    """After 1 to 2 ``every`` steps beyond where this start began."""
    lines, steps = _Lines(run / "metrics" / "train.jsonl"), rng.randint(1, 2 * every)
    if not _wait(job, lambda: lines.new() >= steps):
        return False
    time.sleep(rng.uniform(0, 0.1))
    return job.code is None


def _while_writing(job: Job, run: Path, every: int, rng: random.Random) -> bool:
    """While files of a checkpoint are being written."""
    if not _wait(job, lambda: any(_checkpoints(run, ".writing-"))):
        return False
    time.sleep(rng.uniform(0, 0.03))
    return job.code is None


def _while_publishing(job: Job, run: Path, every: int, rng: random.Random) -> bool:
    """Just when a checkpoint has its name: ``latest`` is replaced, older ones are deleted."""
    before = set(_checkpoints(run, "step-"))
    if not _wait(job, lambda: set(_checkpoints(run, "step-")) - before):
        return False
    time.sleep(rng.uniform(0, 0.01))
    return job.code is None


_Moment = Callable[[Job, Path, int, random.Random], bool]
_MOMENTS: Mapping[str, tuple[float, _Moment]] = {
    "starting": (0.15, _while_starting),
    "between steps": (0.4, _between_steps),
    "writing": (0.3, _while_writing),
    "publishing": (0.15, _while_publishing),
}


class _Lines:
    """The number of lines added to a file; a shorter file in its place counts from the start."""

    def __init__(self, path: Path) -> None:
        self._path, self._new = path, 0
        self._last = self._count()

    def new(self) -> int:
        now = self._count()
        self._new += max(0, now - self._last)
        self._last = now
        return self._new

    def _count(self) -> int:
        try:
            return self._path.read_bytes().count(b"\n")
        except OSError:
            return 0


def _wait(job: Job, condition: Callable[[], Any], seconds: float | None = None) -> bool:
    """Poll; False when the job has ended or ``seconds`` are over.

    Raises:
        TimeoutError: the time limit has passed.
    """
    began = time.monotonic()
    while job.code is None:
        if condition() or (job.stand is not None and job.stand.reached()):
            return True
        if seconds is not None and time.monotonic() - began > seconds:
            return False
        if time.monotonic() - began > _PATIENCE_S:
            raise TimeoutError(
                f"nothing happened in {_PATIENCE_S:g} s:\n{job.log.read_text(errors='replace')}"
            )
        time.sleep(_POLL_S)
    return False


def _checkpoints(run: Path, beginning: str) -> list[str]:
    try:
        return [name for name in os.listdir(run / "checkpoints") if name.startswith(beginning)]
    except OSError:
        return []


def _kill(process: psutil.Process) -> None:
    with suppress(psutil.NoSuchProcess):
        process.kill()

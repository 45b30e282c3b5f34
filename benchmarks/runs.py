"""Training runs for benchmarks: one process each, a few at a time, and a table of means over seeds."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAPPINGS = Path(__file__).parent / "gain"  # of IDD-Lite


@dataclass(frozen=True)
class Job:
    """One run: a variant's name, its overrides, a seed."""

    name: str
    overrides: tuple[str, ...]
    seed: int

    @property
    def folder(self) -> str:
        """Its folder below the benchmark's output."""
        words = re.sub(r"[^A-Za-z0-9]+", "-", self.name)
        return f"{words}-seed{self.seed}"


def real_data() -> Path:
    """The folder named by PPAR_TEST_DATA, which holds ``data`` and ``weights``."""
    folder = os.environ.get("PPAR_TEST_DATA")
    if not folder:
        sys.exit("set PPAR_TEST_DATA to the folder of data/{camvid,labelmefacade,idd_lite} and weights")
    return Path(folder).resolve()


def prepare_streets(shards: Path, limit: int | None = None) -> None:
    """CamVid, LabelMeFacade and IDD-Lite as roads6 shards, unless they are there.

    ``limit``: only so many images per domain.
    """
    data = real_data() / "data"
    some = [] if limit is None else ["--limit", str(limit)]

    def prepare(domain: str, kind: str, folder: str, *options: str) -> None:
        if not (shards / domain / "domain.json").exists():
            place = ["--root", str(data / folder), "--out", str(shards), "--classes", "roads6"]
            command(["prepare", kind, *place, *options, *some])

    prepare("camvid_0001TP", "camvid", "camvid")
    prepare("labelmefacade_test", "labelmefacade", "labelmefacade")
    for domain in ("idd_lite_train", "idd_lite_val"):
        prepare(domain, "folder", "idd_lite", "--mapping", str(MAPPINGS / f"{domain}.yaml"))


def command(arguments: Sequence[str]) -> str:
    """Run ``ppar-dist ARGUMENTS`` on one thread and return its output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if "PPAR_TEST_DATA" in environment:
        environment.setdefault("PPAR_WEIGHTS", f"{environment['PPAR_TEST_DATA']}/weights")
    done = subprocess.run(
        [sys.executable, "-m", "ppar_dist", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"ppar-dist {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return done.stdout


def run_all(
    jobs: Sequence[Job], config: Path, out: Path, common: Sequence[str], parallel: int
) -> dict[tuple[str, int], Path]:
    """Run every job without results, ``parallel`` at a time; returns run folders by (name, seed)."""

    def run(job: Job) -> None:
        folder = out / job.folder
        if (folder / "results.json").exists():
            return
        options = [
            f"run.dir={folder}",
            f"seed={job.seed}",
            "monitoring.enabled=false",
            *common,
            *job.overrides,
        ]
        command(["train", str(config), *options, "--nproc", "1"])
        print(
            f"{job.folder}: " + "  ".join(f"{k} {100 * v:.1f}" for k, v in scores(folder).items()), flush=True
        )

    with ThreadPoolExecutor(parallel) as pool:
        list(pool.map(run, jobs))
    return {(job.name, job.seed): out / job.folder for job in jobs}


def scores(folder: Path) -> dict[str, float]:
    """mIoU per target of a finished run, and on held-out source data."""
    targets: Mapping[str, Any] = json.loads((folder / "results.json").read_text())["targets"]
    found = {name: float(target["miou"]) for name, target in targets.items()}
    held_out = folder / "metrics" / "eval.jsonl"
    lines = held_out.read_text().splitlines() if held_out.exists() else []
    return found | ({"held-out source": json.loads(lines[-1])["miou"]} if lines else {})


def table(runs: Mapping[tuple[str, int], Path], against: str | None = None) -> str:
    """Markdown: mean ± standard deviation over seeds per target, and the paired difference to ``against``."""
    names = list(dict.fromkeys(name for name, _ in runs))
    columns = list(scores(next(iter(runs.values()))))
    rows = [["run", "seeds", *columns]]
    for name in names:
        found = {seed: scores(path) for (run, seed), path in runs.items() if run == name}
        cells = [_spread([100 * score[column] for score in found.values()]) for column in columns]
        if against is not None and name != against:
            base = {seed: scores(runs[against, seed]) for seed in found if (against, seed) in runs}
            cells = [
                f"{cell} ({statistics.mean(100 * (found[seed][c] - base[seed][c]) for seed in base):+.1f})"
                for cell, c in zip(cells, columns, strict=True)
            ]
        rows.append([name, str(len(found)), *cells])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {spread:.1f}"

"""What a PPAR step costs against a plain step, paired in one run, with the bytes and time of the all-reduce.

    PPAR_TEST_DATA=D/.. python -m benchmarks.step [--steps 12] [--rounds 5]
    python -m benchmarks.step --ranks 2          # adds gloo: the one all-reduce between two processes

Both trainers live in one process and take turns, a few steps each, on batches already in memory: only the
step is measured. Ratios are medians over rounds, of CPU time on one thread and of wall time.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.runs import prepare_streets, real_data
from ppar_dist import distributed
from ppar_dist.config import load_config
from ppar_dist.data.pipeline import Batch, train_loader
from ppar_dist.distributed import World
from ppar_dist.plan import make_plan
from ppar_dist.trainer import Trainer


class Side:
    """One of the two trainers, and how long its steps took."""

    def __init__(self, overrides: Sequence[str], options: argparse.Namespace, world: World) -> None:
        run = tempfile.mkdtemp(prefix="ppar-step-")
        text = real_data() / "weights" / "clip-vit-b-16-openai-text-multi.npz"
        common = [f"run.dir={run}", f"data.root={options.shards}", f"text.file={text}", "data.workers=0"]
        common += ["monitoring.enabled=false", *options.override]
        config = load_config(options.config, [*common, *overrides])
        self.trainer = Trainer(make_plan(config, 1), world)
        self.trainer.log.wants = lambda step: step % 10 == 0  # type: ignore[method-assign]
        loader = train_loader(config, self.trainer.plan.indexes, 0, 1, 0, 8 * config.train.global_batch)
        self.batches: list[Batch] = list(islice(loader, 8))
        self.seconds: list[tuple[float, float]] = []

    def run(self, steps: int, progress: float) -> tuple[float, float]:
        """Median CPU and wall seconds of ``steps`` steps in the stage that belongs to ``progress``."""
        state, total = self.trainer.state, self.trainer.config.train.steps
        taken = []
        for number in range(steps):
            batch = self.batches[number % len(self.batches)]
            state.step = round(progress * total)
            state.samples_seen = int(batch.positions[0])
            cpu, wall = time.process_time(), time.perf_counter()
            self.trainer.train_step([batch])
            taken.append((time.process_time() - cpu, time.perf_counter() - wall))
        return statistics.median(c for c, _ in taken), statistics.median(w for _, w in taken)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", type=Path, default=Path("configs/roads.yaml"))
    parser.add_argument("--shards", type=Path, default=Path("shards"))
    parser.add_argument("--steps", type=int, default=8, help="per side and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("override", nargs="*", metavar="key=value")
    options = parser.parse_args()
    prepare_streets(options.shards)
    torch.set_num_threads(1)
    world = distributed.join()
    plain, ppar = Side(["ppar.enabled=false"], options, world), Side([], options, world)
    print(f"all-reduce: {ppar.trainer.training.objective.buffer.nbytes / 1024:.0f} KiB per step")
    for side in (plain, ppar):
        side.run(2, 0.0)  # warm up
    for stage, progress in (("warmup", 0.0), ("text", 0.2), ("visual_text", 0.4), ("pixel", 0.9)):
        ratios = []
        for _ in range(options.rounds):
            base, ours = plain.run(options.steps, progress), ppar.run(options.steps, progress)
            ratios.append((ours[0] / base[0], ours[1] / base[1], base[1], ours[1]))
        cpu, wall, base_s, ours_s = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(
            f"{stage:12s} PPAR/plain: CPU {cpu:.3f}x  wall {wall:.3f}x  (plain {base_s:.3f} s, PPAR {ours_s:.3f} s; "
            f"CPU ratio min {min(r[0] for r in ratios):.3f} max {max(r[0] for r in ratios):.3f})"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process, both sides together: {peak:.2f} GiB")
    distributed.leave()


if __name__ == "__main__":
    main()

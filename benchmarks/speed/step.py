"""The cost of a PPAR step compared with a plain step, paired in one run; bytes and time of the all-reduce.

    PPAR_TEST_DATA=D/.. python -m benchmarks.speed.step [--steps 8] [--rounds 5] [key=value ...]

Both trainers live in one process and take turns, a few steps each, on batches already in memory: only the
step is measured. Ratios are medians over rounds, of CPU time on one thread and of wall time. Then each side
alone in a process of its own for its peak memory, and the all-reduce between two gloo processes.
"""

from __future__ import annotations

import argparse
import os
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import torch

from benchmarks.speed.trainers import batches_in_memory, build_trainer, street_config, street_options
from benchmarks.streets import prepare_streets
from ppar_dist.distributed import rendezvous
from ppar_dist.distributed.world import World

SIDES = {"plain": ["ppar.enabled=false"], "PPAR": []}


class Side:
    """One of the two trainers, with batches in memory."""

    def __init__(self, overrides: Sequence[str], options: argparse.Namespace, world: World) -> None:
        run = tempfile.mkdtemp(prefix="ppar-step-")
        config = street_config(options, run, ["data.workers=0", "monitoring.enabled=false"], overrides)
        self.trainer = build_trainer(config, world)
        self.trainer.log.wants = lambda step: step % 10 == 0  # type: ignore[method-assign]
        self.batches = batches_in_memory(self.trainer, 8)

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


def compare(plain: Side, ppar: Side, steps: int, rounds: int) -> None:
    """Print the ratio of the two sides' steps in each stage."""
    for side in (plain, ppar):
        side.run(2, 0.0)  # warm up
    for stage, progress in (("warmup", 0.0), ("text", 0.2), ("visual_text", 0.4), ("pixel", 0.9)):
        pairs = [(plain.run(steps, progress), ppar.run(steps, progress)) for _ in range(rounds)]
        cpu = sorted(ours[0] / base[0] for base, ours in pairs)
        wall = statistics.median(ours[1] / base[1] for base, ours in pairs)
        base_s, ours_s = (statistics.median(pair[i][1] for pair in pairs) for i in (0, 1))
        print(
            f"{stage:12s} PPAR/plain: CPU {statistics.median(cpu):.3f}x [{cpu[0]:.3f}, {cpu[-1]:.3f}]  "
            f"wall {wall:.3f}x  (plain {base_s:.3f} s, PPAR {ours_s:.3f} s)"
        )


def all_reduce(nbytes: int, repeats: int = 50) -> None:
    """On each of two ranks: the median time to sum a buffer of ``nbytes``; rank 0 prints it."""
    world, flat = rendezvous.join(), torch.zeros(nbytes // 4)
    taken = []
    for _ in range(repeats):
        world.barrier()
        began = time.perf_counter()
        world.sum(flat)
        taken.append(time.perf_counter() - began)
    if world.is_main:
        milliseconds = 1e3 * statistics.median(taken)
        print(f"all-reduce of {nbytes / 1024:.0f} KiB between 2 gloo ranks: {milliseconds:.2f} ms")
    rendezvous.leave()


def in_processes(arguments: Sequence[str], ranks: int = 1) -> None:
    """Run this benchmark again in ``ranks`` processes of their own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    joined = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(ranks)}
    children = []
    for rank in range(ranks):
        variables = joined | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if ranks > 1 else {}
        command = [sys.executable, "-m", "benchmarks.speed.step", *arguments]
        children.append(subprocess.Popen(command, env=os.environ | variables, stderr=subprocess.DEVNULL))
    if any([child.wait() for child in children]):
        sys.exit(f"benchmarks.speed.step {' '.join(arguments)} failed")


def main() -> None:
    """Compare the steps, then measure memory and the all-reduce in processes of their own."""
    parser = street_options(__doc__, steps=8, rounds=5)
    parser.add_argument("--only", choices=tuple(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--all-reduce", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.all_reduce:
        return all_reduce(options.all_reduce)
    prepare_streets(options.shards)
    world = rendezvous.join()
    if options.only:
        Side(SIDES[options.only], options, world).run(3, 0.9)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        print(f"peak memory of a {options.only} process: {peak:.0f} MiB")
        return rendezvous.leave()
    plain, ppar = (Side(SIDES[name], options, world) for name in SIDES)
    compare(plain, ppar, options.steps, options.rounds)
    nbytes = ppar.trainer.learner.objective.buffer.nbytes
    rendezvous.leave()
    same = ["--config", str(options.config), "--shards", str(options.shards), *options.override]
    for name in SIDES:
        in_processes(["--only", name, *same])
    in_processes(["--all-reduce", str(nbytes)], ranks=2)
    return None


if __name__ == "__main__":
    main()

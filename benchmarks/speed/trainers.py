"""A trainer in this process, with batches in memory: for benchmarks that measure steps alone."""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch

from benchmarks.arguments import described
from benchmarks.streets import prepare_streets, real_data
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.data.loader import Batch, train_loader
from ppar_dist.distributed import board, rendezvous
from ppar_dist.distributed.world import World
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.processes.signals import Preemption
from ppar_dist.run.claim import RunClaim
from ppar_dist.run.lock import RunLock
from ppar_dist.training.plan import make_plan
from ppar_dist.training.trainer import Trainer
from ppar_dist.watchdog import Watchdog


def street_options(text: str | None, steps: int, rounds: int) -> argparse.ArgumentParser:
    """Options of a benchmark that takes steps on real streets, ``steps`` and ``rounds`` by default."""
    options = described(text)
    options.add_argument("--config", type=Path, default=Path("configs/roads.yaml"))
    options.add_argument("--shards", type=Path, default=Path("shards"))
    options.add_argument("--steps", type=int, default=steps, help="per side and round")
    options.add_argument("--rounds", type=int, default=rounds)
    options.add_argument("override", nargs="*", metavar="key=value")
    return options


def street_config(
    options: argparse.Namespace, run: str, defaults: Sequence[str], side: Sequence[str] = ()
) -> Config:
    """The configuration that ``street_options`` name, of a run in a folder.

    Their overrides replace ``defaults``, and ``side`` replaces them.
    """
    text = real_data() / "weights" / "clip-vit-b-16-openai-text-multi.npz"
    common = [f"run.dir={run}", f"data.root={options.shards}", f"text.file={text}", *defaults]
    return load_config(options.config, [*common, *options.override, *side])


@contextlib.contextmanager
def monitored_trainer(options: argparse.Namespace) -> Iterator[tuple[Trainer, Monitor]]:
    """A trainer of ``street_config`` on one thread, which serves its metrics, and its monitor."""
    torch.set_num_threads(1)
    prepare_streets(options.shards)
    with tempfile.TemporaryDirectory(prefix="ppar-monitored-") as run:
        config = street_config(options, run, ["monitoring.port=0"])
        world = rendezvous.join()
        with Monitor(config, world) as monitor:
            yield build_trainer(config, world, monitor), monitor
        rendezvous.leave()


def build_trainer(config: Config, world: World, monitor: Monitor | None = None) -> Trainer:
    """A trainer of ``config`` on one rank without a watchdog; its plan is not printed."""
    limits = config.faults.stall_s, config.faults.peer_s
    watch = Watchdog(world, board.open_board(world), *limits, config.run.dir)
    with contextlib.redirect_stdout(io.StringIO()):
        plan = make_plan(config, 1)
        claim = RunClaim(plan.config, world, RunLock(config.run.dir, config.faults.peer_s), plan.classes)
        claim.claim()
        return Trainer(plan, world, claim, Preemption(), watch, monitor or Monitor(config, world))


def batches_in_memory(trainer: Trainer, steps: int) -> list[Batch]:
    """The batches of the first ``steps`` steps."""
    config = trainer.config
    loader = train_loader(config, trainer.plan.indexes, 0, 1, 0, steps * config.train.global_batch)
    return list(islice(loader, steps))

"""A trainer in this process, with batches in memory: for benchmarks that measure steps alone."""

from __future__ import annotations

import contextlib
import io
from itertools import islice

from ppar_dist.config.schema import Config
from ppar_dist.data.loader import Batch, train_loader
from ppar_dist.distributed import board
from ppar_dist.distributed.world import World
from ppar_dist.monitoring.monitor import Monitor
from ppar_dist.processes.signals import Preemption
from ppar_dist.run.lock import RunLock
from ppar_dist.training.plan import make_plan
from ppar_dist.training.trainer import Trainer
from ppar_dist.watchdog import Watchdog


def build_trainer(config: Config, world: World, monitor: Monitor | None = None) -> Trainer:
    """A trainer of ``config`` on one rank without a watchdog; its plan is not printed."""
    limits = config.faults.stall_s, config.faults.peer_s
    watch = Watchdog(world, board.open_board(world), *limits, config.run.dir)
    with contextlib.redirect_stdout(io.StringIO()):
        return Trainer(
            make_plan(config, 1),
            world,
            Preemption(),
            watch,
            monitor or Monitor(config, world),
            RunLock(config.run.dir, config.faults.peer_s),
        )


def batches_in_memory(trainer: Trainer, steps: int) -> list[Batch]:
    """The batches of the first ``steps`` steps."""
    config = trainer.config
    loader = train_loader(config, trainer.plan.indexes, 0, 1, 0, steps * config.train.global_batch)
    return list(islice(loader, steps))

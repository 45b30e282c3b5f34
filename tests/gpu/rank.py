"""Rank 0 of a job on pretended devices, and what it was seen to do."""

from __future__ import annotations

import gc
from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from ppar_dist.data.colours import Colours
from ppar_dist.data.loader import Batch, order_of
from ppar_dist.distributed.world import World
from ppar_dist.ppar.replica_check import ReplicaCheck
from ppar_dist.training import learner
from ppar_dist.training.plan import RunPlan
from ppar_dist.training.trainer import Trainer
from tests.gpu.probe import PretendedDevice

DEVICE = torch.device("cuda", 0)
_ROW = (1.0, 0.0, 0.0, 0.0)
COLOURS = Colours((_ROW, _ROW, _ROW), gamma=0.9, sigma=1.0)  # all that can be drawn; for one image of a batch


class Watch:
    """Tells the probe the phase, as the watchdog is told it."""

    def __init__(self, probe: PretendedDevice) -> None:
        self._probe = probe

    def phase(self, name: str, step: int) -> None:
        self._probe.phase = name

    def alive(self) -> None:
        """Nobody watches."""


class LoneWorld(World):
    """Rank 0 of many, whose peers say what it says: pickled values are no FakeTensors."""

    def broadcast(self, value: Any) -> Any:
        return value

    def gather(self, value: Any) -> list[Any]:
        return [value] * self.world_size


class Rank:
    """Rank 0 of a job on pretended devices, at any step of it."""

    def __init__(self, plan: RunPlan, ranks: int, probe: PretendedDevice) -> None:
        self.plan, self.probe = plan, probe
        gc.collect()
        self.before = probe.held  # by what is left of other cases
        self.world = LoneWorld(0, 0, ranks, DEVICE, dist.new_group())
        self.wants_detail = False
        self.learner = learner.build_learner(plan, self.world)
        self.trainer = self._trainer()

    def _trainer(self) -> Trainer:
        """A trainer without a run's folder: its steps are those of the product."""
        trainer: Any = object.__new__(Trainer)
        trainer.plan, trainer.config, trainer.world = self.plan, self.plan.config, self.world
        trainer.learner, trainer.watch = self.learner, Watch(self.probe)
        trainer.domains = [index.name for index in self.plan.indexes]
        trainer.order = order_of(self.plan.config, self.plan.indexes)
        trainer.preemption = SimpleNamespace(requested=False)
        trainer.log = SimpleNamespace(wants=lambda step: self.wants_detail, diverged=lambda step: None)
        trainer.replica_check = ReplicaCheck(self.world.world_size)
        trainer.batches = SimpleNamespace(bring_next=lambda: None)  # they are given to each step
        trainer.quarantine = trainer.ledger = None
        made: Trainer = trainer
        return made

    def go_to(self, step: int) -> None:
        state = self.learner.state
        state.step, state.samples_seen = step, step * self.plan.config.train.global_batch

    def step(self) -> Any:
        """A step of the trainer on images of no content; what the recorder asks for after it counts too."""
        cut, first = self.plan.batching, self.learner.state.samples_seen
        self.probe.phase = "data"
        firsts = [first + number * cut.micro_batch for number in range(cut.accumulation)]
        batches = [self.batch(cut.micro_batch, at).to(DEVICE) for at in firsts]
        figures = self.trainer.train_step(batches)
        self.probe.phase = "record"
        self.learner.engine.grad_norm()
        return figures

    def batch(self, size: int, first: int) -> Batch:
        crop = self.plan.config.data.crop
        zeros = torch.zeros(size, dtype=torch.int64)
        images = torch.zeros(size, 3, *crop, dtype=torch.uint8)
        labels = torch.zeros(size, *crop, dtype=torch.uint8)
        positions = torch.arange(first, first + size)
        return Batch(
            images,
            labels,
            zeros,
            positions,
            zeros,
            zeros,
            ["key"] * size,
            [COLOURS, *[Colours()] * (size - 1)],
        )


def told(rank: Rank) -> dict[str, Any]:
    """What the probe has counted, as JSON; FLOPs are per image."""
    probe, images = rank.probe, rank.plan.batching.local_batch
    waits, by_owner = Counter[str](), Counter[str]()
    for (owner, place, why, phase), number in probe.waits.items():
        waits[f"{owner} {place} {why} in {phase}"] += number
        by_owner["ppar_dist" if owner in ("ppar_dist", "torch") else owner] += number
    collectives: dict[str, dict[str, list[int]]] = {}
    for (phase, name, dtype), number in probe.collectives.items():
        entry = collectives.setdefault(phase, {})
        entry[f"{name} {dtype.removeprefix('torch.')}"] = [number, probe.sent[phase, name, dtype]]
    return {
        "operations": probe.operations.total(),
        "flops": {str(dtype).removeprefix("torch."): n / images for dtype, n in probe.flops.items()},
        "slow": dict(probe.slow.most_common(6)),
        "attention": {k: v for k, v in probe.operations.items() if "scaled_dot_product" in k},
        "peak": probe.peak - rank.before,
        "held": probe.held - rank.before,
        "waits": dict(waits),
        "waits_of": dict(by_owner),
        "copies": {f"{way} {place}": size for (way, place), size in probe.copies.items()},
        "collectives": collectives,
    }

"""The GPU recipes as the model sees them, on machines of 8 H100: assumed, not run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from benchmarks.streets import ROOT
from ppar_dist.config.load import load_config
from ppar_dist.config.schema import Config
from ppar_dist.doctor.case import ConfigCase
from ppar_dist.doctor.cluster import Cluster
from ppar_dist.doctor.failure_cost import Restart, Save
from ppar_dist.doctor.outlook import (
    NETWORK_LATENCY_S,
    NVLINK,
    REACHED,
    Outlook,
    SaveBytes,
    outlook,
    restart_cost,
    save_bytes,
    save_cost,
)
from ppar_dist.doctor.scale import Link, Machines, Work

RECIPES = (
    "gta5_vitb16",
    "gta5_rn101",
    "gta5_synthia_eva02l",
    "gta5_dinov2l_lora",
    "cityscapes_acdc_dinov2l_lora",
)
GPUS, CORES = 8, 112  # of a machine
STORAGE = {"local disk": 6e9, "shared": 2e9, "object": 1e9}  # bytes per second of a machine: assumed
COPYING, HASHING = 2.2e9, 1.5e9  # bytes per second: `python -m benchmarks.scale.start`, and doctor's own
MOST_AT_ONCE = 16  # images of a micro-batch; each recipe has room for as many with 80 GB


@dataclass(frozen=True)
class Job:
    """A recipe, and what the model is told of it."""

    name: str
    config: Config
    case: ConfigCase

    @cached_property
    def told(self) -> Outlook:
        """With operations counted, and nothing of this machine that counts below."""
        return outlook(self.case)

    def work(self, local_batch: int) -> Work:
        """Of a rank with so many images a step."""
        micro = max(size for size in range(1, min(local_batch, MOST_AT_ONCE) + 1) if local_batch % size == 0)
        return replace(self.told.work, local_batch=local_batch, micro_batch=micro)

    def sizes(self, machines: Machines) -> SaveBytes:
        """Of a checkpoint."""
        return save_bytes(self.config, self.case.image_cost, machines)

    def save(self, machines: Machines) -> Save:
        """What a checkpoint costs."""
        return save_cost(self.config, self.sizes(machines), machines, COPYING, HASHING)

    def restart(self, machines: Machines) -> Restart:
        """What a restart takes."""
        work = self.work(MOST_AT_ONCE)
        return restart_cost(self.config, self.sizes(machines), machines, COPYING, HASHING, work)


def job(name: str) -> Job:
    """A recipe by its name, told of for H100."""
    config = load_config(ROOT / "configs" / f"{name}.yaml", [f"run.dir={Path.cwd() / 'runs' / name}"])
    cluster = Cluster(nodes=1, gpus_per_node=GPUS, storage_gbps=8e-9 * STORAGE["shared"])
    return Job(name, config, ConfigCase(config, device="H100", cluster=cluster))


def machines(gpus: int, gbps: float = 400.0, storage: str = "local disk") -> Machines:
    """Machines of 8 GPUs, or one with fewer, whose shards lie on such storage."""
    network = Link(NETWORK_LATENCY_S, REACHED * gbps * 1e9 / 8)
    each = min(gpus, GPUS)
    return Machines(gpus // each, each, NVLINK, network, CORES, STORAGE[storage])

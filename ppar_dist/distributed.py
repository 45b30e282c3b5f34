"""Ranks and collectives. The only module that imports torch.distributed or reads a launcher's environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# The variables that torchrun and the DeepSpeed launcher both set.
_RANK, _LOCAL_RANK, _WORLD_SIZE = "RANK", "LOCAL_RANK", "WORLD_SIZE"


@dataclass(frozen=True)
class World:
    """Who this process is among the ranks, and the collectives it may call.

    With ``world_size`` 1 every collective is the identity, so callers need no second path.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    statistics_group: Any = None  # own group: never interleaves with the gradient reduction

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0

    def start_sum(self, tensor: torch.Tensor) -> PendingSum:
        """Start summing ``tensor`` in place over the ranks; it is valid after ``wait``."""
        if self.world_size == 1:
            return PendingSum(None)
        return PendingSum(dist.all_reduce(tensor, group=self.statistics_group, async_op=True))

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` in place over the ranks and return it."""
        self.start_sum(tensor).wait()
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable ``value``, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value)
        return values


@dataclass(frozen=True)
class PendingSum:
    """A sum under way."""

    work: Any

    def wait(self) -> None:
        """Block until the sum is complete."""
        if self.work is not None:
            self.work.wait()


def join(environment: Mapping[str, str] | None = None, timeout_s: float = 600.0) -> World:
    """Join the ranks that the launcher described in the environment; alone where it did not.

    Backend: nccl where there are GPUs, else gloo.
    """
    variables = os.environ if environment is None else environment
    rank = int(variables.get(_RANK, "0"))
    world_size = int(variables.get(_WORLD_SIZE, "1"))
    local_rank = int(variables.get(_LOCAL_RANK, "0"))
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        alone = {} if _RANK in variables else _rendezvous_alone()
        dist.init_process_group(
            backend, rank=rank, world_size=world_size, timeout=timedelta(seconds=timeout_s), **alone
        )
    group = dist.new_group(timeout=timedelta(seconds=timeout_s)) if world_size > 1 else None
    return World(rank, local_rank, world_size, device, group)


def leave() -> None:
    """Leave the process group, if this process is in one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _rendezvous_alone() -> dict[str, Any]:
    """A store inside this process: one rank needs neither a port nor a launcher."""
    return {"store": dist.HashStore()}

"""Ranks and collectives. The only module that imports torch.distributed or reads a launcher's environment."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from ppar_dist.errors import UserError

_T = TypeVar("_T")


class Waiting:
    """Which collective the main thread is in, for whoever watches it from another thread."""

    def __init__(self) -> None:
        """Nothing is waited for."""
        self.name = ""

    @contextmanager
    def inside(self, name: str) -> Iterator[None]:
        """The block waits for other ranks in the collective ``name``."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.name = name
        try:
            yield
        finally:
            self.name = ""


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
    waiting: Waiting = field(default_factory=Waiting, compare=False, repr=False)

    @property
    def is_main(self) -> bool:
        """True on the one rank that writes files and logs."""
        return self.rank == 0

    def start_sum(self, tensor: torch.Tensor) -> PendingSum:
        """Start summing ``tensor`` in place over the ranks; it is valid after ``wait``."""
        if self.world_size == 1:
            return PendingSum(None, self.waiting)
        work = dist.all_reduce(tensor, group=self.statistics_group, async_op=True)
        return PendingSum(work, self.waiting)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum ``tensor`` in place over the ranks and return it."""
        self.start_sum(tensor).wait()
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.world_size > 1:
            with self.waiting.inside("barrier"):
                dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """Rank 0's picklable ``value``, on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        device = self.device if self.device.type == "cuda" else None
        with self.waiting.inside("broadcast"):
            dist.broadcast_object_list(box, src=0, device=device)
        return box[0]

    def on_main(self, fn: Callable[[], _T]) -> _T:
        """What ``fn`` returns on rank 0, the only rank that calls it, on every rank. Collective.

        Raises:
            UserError: on every rank, with the text of the one that ``fn`` raised: on rank 0 alone, the others
                would wait for it.
        """
        result, problem = None, None
        if self.is_main:
            try:
                result = fn()
            except UserError as error:
                problem = str(error)
        result, problem = self.broadcast((result, problem))
        if problem is not None:
            raise UserError(problem)
        return cast(_T, result)

    def gather(self, value: Any) -> list[Any]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        with self.waiting.inside("gather"):
            dist.all_gather_object(values, value)
        return values


@dataclass(frozen=True)
class PendingSum:
    """A sum under way."""

    work: Any
    waiting: Waiting

    def wait(self) -> None:
        """Block until the sum is complete."""
        if self.work is not None:
            with self.waiting.inside("sum"):
                self.work.wait()

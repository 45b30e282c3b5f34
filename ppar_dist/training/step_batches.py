"""The micro-batches of the steps to come. On a GPU those of the next step come while it computes this one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from ppar_dist.data.loader import Batch


@dataclass
class _Brought(Batch):
    """A batch in page-locked memory, and its copy on the device: what the host reads it has here."""

    there: Batch | None = None
    device: torch.device | None = None

    def to(self, device: torch.device | str) -> Batch:
        """The copy, from where this stream has waited for it."""
        assert self.there is not None
        assert torch.device(device) == self.device
        now = torch.cuda.current_stream(self.device)
        for tensor in _tensors(self.there):
            tensor.record_stream(now)  # its memory is the side stream's: not to be given away meanwhile
        return self.there


class StepBatches:
    """This rank's micro-batches, step by step, from one position on."""

    def __init__(self, loader: Iterator[Batch], accumulation: int, device: torch.device) -> None:
        """``loader`` gives ``accumulation`` micro-batches for each step."""
        self._loader, self._accumulation, self._device = loader, accumulation, device
        self._side: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._next: list[Batch] | Exception | None = None
        self.waited_s = 0.0  # for the loader, in ``bring_next``, since the last ``take``

    def take(self) -> list[Batch]:
        """The next step's micro-batches.

        Raises:
            Exception: what the loader raised when their turn came.
        """
        if self._next is None:
            self._fetch()
        batches, self._next, self.waited_s = self._next, None, 0.0
        if isinstance(batches, Exception):
            raise batches
        assert batches is not None
        if self._side is not None:
            torch.cuda.current_stream(self._device).wait_stream(self._side)
        return batches

    def bring_next(self) -> None:
        """Begin to bring the next step's micro-batches to a GPU; on a CPU there is nothing to bring.

        To be called when the GPU has all of this step's work that needs no answer of the host. An error is
        kept until the batches are taken: this step is not the one that it ends.
        """
        if self._side is not None and self._next is None:
            began = time.monotonic()
            self._fetch()
            self.waited_s = time.monotonic() - began

    def _fetch(self) -> None:
        try:
            batches = list(islice(self._loader, self._accumulation))
            self._next = batches if self._side is None else [self._brought(batch) for batch in batches]
        except Exception as error:
            self._next = error

    def _brought(self, batch: Batch) -> Batch:
        pinned = batch.pin_memory()
        with torch.cuda.stream(self._side):
            return _Brought(**vars(pinned), there=pinned.to(self._device), device=self._device)


def _tensors(batch: Batch) -> list[Tensor]:
    return [value for value in vars(batch).values() if isinstance(value, Tensor)]

"""One flat float32 tensor with named views: everything the ranks of a step share.

The owner fills the views during the forward passes; the trainer sums ``flat`` over ranks with one
all-reduce. Entries are sums and counts, never averages, so that adding them is right.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor


class SyncBuffer:
    """Views into one flat tensor, laid out in the order of the layout."""

    def __init__(self, layout: Mapping[str, tuple[int, ...]], device: torch.device | str = "cpu") -> None:
        """Zeros for every (name, shape) of ``layout``."""
        self.layout = dict(layout)
        self._start: dict[str, int] = {}
        size = 0
        for name, shape in self.layout.items():
            self._start[name] = size
            size += math.prod(shape)
        self.flat = torch.zeros(size, dtype=torch.float32, device=device)

    @property
    def nbytes(self) -> int:
        """Bytes that one all-reduce moves."""
        return self.flat.numel() * self.flat.element_size()

    def start(self, name: str) -> int:
        """Index of the first element of an entry."""
        return self._start[name]

    def view(self, name: str, source: Tensor | None = None) -> Tensor:
        """The entry in its shape, from ``flat`` or from a copy of its front part."""
        flat = self.flat if source is None else source
        start, shape = self._start[name], self.layout[name]
        return flat[start : start + math.prod(shape)].view(shape)

    def add(self, name: str, value: Tensor) -> None:
        """Add ``value``, of the entry's shape and from any device, without a gradient."""
        if value.shape != self.layout[name]:
            raise ValueError(f"{name} has shape {self.layout[name]}, got {tuple(value.shape)}")
        # Not blocking: the driver has taken a value from the CPU's memory before the call returns.
        self.view(name).add_(value.detach().to(self.flat.device, non_blocking=True))

    def zero(self) -> None:
        """Empty every entry."""
        self.flat.zero_()

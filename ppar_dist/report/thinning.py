"""Records by step in bounded memory: of very many, evenly chosen ones and the newest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

Value = TypeVar("Value")


class Thinned(Generic[Value]):
    """Keeps values by step, up to about ``most``; where a step comes again, the later value counts."""

    def __init__(self, most: int, size: Callable[[Value], int] = lambda value: 1) -> None:
        """``size`` is what a value counts of ``most``."""
        self.stride = 1  # one of so many steps is kept
        self._most, self._size = most, size
        self._kept: dict[int, Value] = {}
        self._total = self._steps = 0
        self._newest: tuple[int, Value] | None = None

    def put(self, step: int, value: Value) -> None:
        """Take in one more value."""
        self._newest = (step, value)
        if step in self._kept:
            self._total -= self._size(self._kept[step])
        else:
            self._steps += 1
            if self._steps % self.stride:
                return
        self._kept[step] = value
        self._total += self._size(value)
        while self._total > self._most and len(self._kept) > 1:
            self._halve()

    def values(self) -> Iterator[Value]:
        """By rising step."""
        kept = self._kept if self._newest is None else self._kept | dict([self._newest])
        return (kept[step] for step in sorted(kept))

    def _halve(self) -> None:
        self.stride *= 2
        self._kept = {step: self._kept[step] for step in sorted(self._kept)[1::2]}
        self._total = sum(self._size(value) for value in self._kept.values())

"""A part of work that several machines share: which of them does what is a function of the input alone."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from ppar_dist.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """Part ``number`` (from 1) of ``count``."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, items: Sequence[T]) -> list[T]:
        """The items of this part, a stretch of them; all parts together have each item once."""
        first, last = ((self.number - less) * len(items) // self.count for less in (1, 0))
        return list(items[first:last])


def read_part(text: str) -> Part:
    """The part that ``i/n`` names; raises UserError where it names none."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    part = Part(int(found[1]), int(found[2])) if found else Part(0, 0)
    if not 1 <= part.number <= part.count:
        raise UserError(f"--part is i/n with i from 1 to n, such as 1/4, got {text!r}")
    return part

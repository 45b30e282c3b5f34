"""Checks that tensors have the types and shapes that annotations name.

Tests of ``ppar/`` and ``models/`` run with it: `tests/conftest.py` switches it on for the process of pytest.
Other annotations are mypy's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from beartype import beartype


def checked(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn``, which refuses tensors of other shapes than its annotations name."""
    fn.__annotations__ = {name: hint for name, hint in fn.__annotations__.items() if "[Tensor, " in str(hint)}
    return beartype(fn)
